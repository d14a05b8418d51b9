"""What servers have in Redis: sessions, in a store on another machine; and how many clients all of them have."""
