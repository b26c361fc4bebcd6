"""Groups of commands, one file each: what `taskmem GROUP COMMAND` does. `pipelines.cli` mounts them."""
