// Package wire is the network connection below the driver: it dials, sets the socket
// options, and wraps what it dialled in a Conn. A Conn peeks at an idle socket without
// a round trip, reads the thread id from the server's greeting, counts the bytes that
// were written, and keeps the first I/O error: so livepool knows whether a statement
// was sent, and what ended the connection. It knows neither SQL nor the pool; package
// connector installs it as the driver's DialFunc and reads what it has recorded.
package wire
