"""HIER: representations pre-trained over source domains, for domains with few clicks or none."""
