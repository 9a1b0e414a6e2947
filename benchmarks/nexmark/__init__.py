"""Nexmark: queries over the people, auctions and bids of an auction house, through Headrace's public API."""
