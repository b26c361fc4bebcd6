"""Any folder of videos to 10-second segments."""
