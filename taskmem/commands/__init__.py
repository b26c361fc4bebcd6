"""Groups of commands, one file each: what `taskmem GROUP COMMAND` does. `taskmem.cli` mounts them."""
