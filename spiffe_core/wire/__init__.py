"""What goes over connections: messages and their converters, status codes, the front door, and the dialer."""
