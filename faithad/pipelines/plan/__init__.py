"""What a study or an audit will take on a cluster, before anything of it is run."""
