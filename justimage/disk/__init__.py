"""Disk: files that are whole or absent, folders that one command holds, and what is kept between runs."""
