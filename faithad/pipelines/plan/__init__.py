"""What a study, a search or an audit will take on some machines, before any of it is done."""
