"""Phase Two: DPO on one vector teaches it what to memorize (METHOD section 4)."""
