"""What the server says to those who do not ask for a WebSocket."""
