// errors.go says what an error means for the connection it came from and for
// the statement that met it. It decides nothing: conn.go acts on it.

package livepool

import (
	"database/sql/driver"
	"errors"
	"io"
	"net"
	"strings"
	"syscall"

	"github.com/go-sql-driver/mysql"
)

// Class is what an error means: a set of the flags below.
type Class uint16

const (
	// ConnDead: the connection cannot be used again.
	ConnDead Class = 1 << iota
	// NotRun: the server refused the statement before it did anything.
	NotRun
	// Elsewhere: this server will not do the work now, another one, or a new
	// connection after a failover, may.
	Elsewhere
)

// String lists the flags of c.
func (c Class) String() string {
	var names []string
	for _, f := range []word[Class]{{"ConnDead", ConnDead}, {"NotRun", NotRun}, {"Elsewhere", Elsewhere}} {
		if c&f.value != 0 {
			names = append(names, f.name)
		}
	}
	if names == nil {
		return "0"
	}
	return strings.Join(names, "|")
}

// serverError is one row of the table: what the server's answer means.
type serverError struct {
	number uint16
	name   string
	text   string // when set, the message must contain it: the code is overloaded
	class  Class
	source string
}

// serverErrors are the errors by which a server says that the statement did
// not run and that the connection is not worth keeping.
var serverErrors = []serverError{
	{1047, "ER_UNKNOWN_COM_ERROR", "WSREP", NotRun | Elsewhere,
		"Galera: a node without quorum answers pings and SELECT 1 and refuses all else; seen on MariaDB 10.11"},
	{1053, "ER_SERVER_SHUTDOWN", "", ConnDead,
		"MySQL error reference: server shutdown in progress"},
	{1290, "ER_OPTION_PREVENTS_STATEMENT", "read-only", NotRun | Elsewhere,
		"read_only or super_read_only is on, as after a failover; the code is shared with other options; seen on MariaDB 10.11 and MySQL 9.7"},
	{1792, "ER_CANT_EXECUTE_IN_READ_ONLY_TRANSACTION", "", NotRun | Elsewhere,
		"outside a transaction: transaction_read_only is on, as on an Aurora reader (driver option rejectReadOnly)"},
	{1836, "ER_READ_ONLY_MODE", "", NotRun | Elsewhere,
		"MySQL error reference: running in read-only mode; TiDB when read-only"},
	{1927, "ER_CONNECTION_KILLED", "", ConnDead,
		"MariaDB error reference: connection was killed"},
	{3169, "ER_SESSION_WAS_KILLED", "", ConnDead,
		"MySQL error reference: session was killed"},
	{3032, "ER_SERVER_OFFLINE_MODE", "", ConnDead,
		"MySQL error reference: offline_mode ends the sessions of ordinary users"},
	{4031, "ER_CLIENT_INTERACTION_TIMEOUT", "", ConnDead | NotRun,
		"MySQL 8.0.24: the server closed the idle connection before it read anything; seen on MySQL 9.7"},
}

// Classify says what err means, looking through errors that wrap it. It is 0
// for an error that leaves the connection as good as it was, such as a
// duplicate key.
func Classify(err error) Class {
	var my *mysql.MySQLError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &my):
		return classifyServer(my)
	case errors.Is(err, driver.ErrBadConn), errors.Is(err, mysql.ErrInvalidConn),
		errors.Is(err, mysql.ErrPktSync), errors.Is(err, mysql.ErrPktSyncMul), errors.Is(err, mysql.ErrMalformPkt):
		return ConnDead
	case isNetworkLoss(err):
		return ConnDead
	}
	return 0
}

func classifyServer(my *mysql.MySQLError) Class {
	for _, row := range serverErrors {
		if row.number == my.Number && strings.Contains(my.Message, row.text) {
			return row.class
		}
	}
	return 0
}

// isNetworkLoss is true of what a socket says when the other end is gone. It
// is not true of a context's end, though that is a net.Error too.
func isNetworkLoss(err error) bool {
	var op *net.OpError
	var errno syscall.Errno
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		errors.As(err, &op) || errors.As(err, &errno)
}
