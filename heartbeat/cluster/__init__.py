"""What servers have in Redis: sessions, of one server or of a fleet; and how many clients all of them have."""
