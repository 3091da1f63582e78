"""What peers say to each other, without sockets: messages, codec, session phases."""
