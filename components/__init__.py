"""Pipeline components: thin kfp wrappers, one folder per step. The work is done in `stillhouse`."""
