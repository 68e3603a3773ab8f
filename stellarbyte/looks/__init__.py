"""How pages and charts look: colours, the head of a page, fonts. Pages and pictures of every command share it."""
