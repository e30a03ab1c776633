"""What happens to the clips and the tables of an audit: chosen, scored, explained, joined to events, exported."""
