package livepool

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"syscall"
	"testing"

	"github.com/go-sql-driver/mysql"
)

// The table is what its comment says: numbers with a name, a SQLSTATE, a family
// and a source, each found by its own row.
func TestErrorTable(t *testing.T) {
	seen := map[string]bool{}
	for _, row := range serverErrors {
		t.Run(fmt.Sprintf("%d %s", row.number, row.name), func(t *testing.T) {
			key := fmt.Sprint(row.number, row.text)
			if seen[key] {
				t.Error("there is an earlier row for it, which hides this one")
			}
			seen[key] = true
			if len(row.state) != 5 || row.name == "" || row.family == "" || row.source == "" {
				t.Errorf("incomplete: %+v", row)
			}
			err := &mysql.MySQLError{Number: row.number, SQLState: [5]byte([]byte(row.state)), Message: "said " + row.text + " or so"}
			for _, err := range []error{err, fmt.Errorf("job 7: %w", err), errors.Join(errors.New("and"), err)} {
				if got := Classify(err); got != row.class {
					t.Errorf("%v: %s, want %s", err, got, row.class)
				}
			}
			coherent(t, row.name, row.class)
		})
	}
}

// The errors on which money depends, told without the table.
func TestWhatErrorsMean(t *testing.T) {
	const lost = ConnDead | TxGone | CommitUnknown | Retry
	server := func(number uint16, message string) error {
		return &mysql.MySQLError{Number: number, Message: message}
	}
	_, missing := os.Open("/no such file")
	for _, tt := range []struct {
		err  error
		want Class
	}{
		{nil, 0},
		{server(1062, "Duplicate entry"), 0},
		{server(1064, "You have an error in your SQL syntax"), 0},
		{server(1213, "Deadlock found when trying to get lock; try restarting transaction"), TxGone | Retry | BackOff},
		{server(1205, "Lock wait timeout exceeded; try restarting transaction"), StatementUndone | Retry | BackOff},
		{server(1290, "The MySQL server is running with the --super-read-only option so it cannot execute this statement"), NotRun | Elsewhere | Retry | BackOff},
		{server(1290, "The MySQL server is running with the --skip-grant-tables option so it cannot execute this statement"), 0},
		{server(1047, "WSREP has not yet prepared node for application use"), NotRun | Elsewhere | TxGone | Retry | BackOff},
		{server(1047, "Unknown command"), 0},
		{server(1180, "Got error 6 \"No such device or address\" during COMMIT"), TxGone | CommitUnknown},
		{server(1317, "Query execution was interrupted"), StatementUndone | CommitUnknown},
		{server(4031, "The client was disconnected by the server because of inactivity"), ConnDead | NotRun | TxGone | Retry},
		{server(4031, "Referenced trigger 'a' for the given action time and event type does not exist"), 0}, // MariaDB's
		{errUnasked, ConnDead | NotRun | TxGone | Retry},
		{&notCommittedError{cause: errUnasked}, ConnDead | NotRun | TxGone | Retry},
		{mysql.ErrBusyBuffer, ConnDead | NotRun | TxGone | Retry},
		{server(1105, "The last transaction was aborted due to Zero Downtime Patch. Please retry."), TxGone | Retry | BackOff},
		{server(1105, "The last transaction was aborted due to Seamless Scaling. Please retry."), TxGone | Retry | BackOff},
		{server(1105, "unknown error"), 0},
		{server(1045, "Access denied for user"), 0},
		{server(1040, "Too many connections"), NotRun | Retry | BackOff},
		{&mysql.MySQLError{Number: 60001, SQLState: [5]byte([]byte("40001"))}, TxGone | Retry | BackOff},
		{driver.ErrBadConn, ConnDead | NotRun | TxGone | Retry},
		{fmt.Errorf("job: %w", driver.ErrBadConn), ConnDead | NotRun | TxGone | Retry},
		{mysql.ErrInvalidConn, lost},
		{mysql.ErrPktSync, lost},
		{io.EOF, lost},
		{io.ErrUnexpectedEOF, lost},
		{&net.OpError{Op: "read", Err: syscall.ECONNRESET}, lost},
		{syscall.EPIPE, lost},
		{&connectError{text: "livepool: connecting failed", cause: &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}}, NotRun | Retry | BackOff},
		{&connectError{text: "livepool: connecting failed", cause: os.ErrDeadlineExceeded}, NotRun | Retry | BackOff},
		{&connectError{text: "livepool: connecting failed", cause: context.Canceled}, 0},
		{&connectError{text: "livepool: connecting failed", cause: server(1045, "Access denied")}, 0},
		{&connectError{text: "livepool: connecting failed", cause: mysql.ErrNoTLS}, NotRun},
		{&connectError{text: "livepool: connecting failed", cause: mysql.ErrUnknownPlugin}, NotRun},
		{&connectError{text: "livepool: connecting failed", cause: &tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}}, NotRun},
		{&connectError{text: "livepool: connecting failed", cause: &net.OpError{Op: "remote error", Err: errors.New("tls: bad certificate")}}, NotRun},
		{&connectError{text: "livepool: connecting failed", cause: &net.OpError{Op: "dial", Err: net.UnknownNetworkError("tpc")}}, NotRun},
		{&commitUnknownError{cause: mysql.ErrInvalidConn}, lost &^ Retry},
		{fmt.Errorf("job: %w", errors.Join(&commitUnknownError{cause: server(1053, "Server shutdown in progress")}, driver.ErrBadConn)), (lost | BackOff) &^ Retry},
		{fmt.Errorf("job: %w", ErrCommitUnknown), CommitUnknown},
		{&poisonedError{"statement refused", server(1213, "Deadlock"), false}, TxGone | Retry | BackOff},
		{context.Canceled, 0},
		{context.DeadlineExceeded, 0},
		{missing, 0},
		{fs.ErrNotExist, 0},
		{mysql.ErrPktTooLarge, 0},
		{errors.New("sold out"), 0},
	} {
		if got := Classify(tt.err); got != tt.want {
			t.Errorf("%v: %s, want %s", tt.err, got, tt.want)
		}
	}
}

func TestRefusedCommitIsADefiniteFailure(t *testing.T) {
	for number, refused := range map[uint16]bool{
		1213: true, 1205: true, 1290: true, 1836: true, 3101: true, 4031: true, 9007: true,
		1180: false, 1053: false, 1317: false, 1927: false, 3169: false, 3100: false, 8501: false, 60002: false,
	} {
		err := &mysql.MySQLError{Number: number, Message: "read-only, inactivity"}
		if got := refusesCommit(Classify(err)); got != refused {
			t.Errorf("%d in answer to COMMIT: proves that nothing was committed: %v, want %v", number, got, refused)
		}
	}
}

type fakeConnector struct{}

func (fakeConnector) Connect(context.Context) (driver.Conn, error) { return nil, io.EOF }
func (fakeConnector) Driver() driver.Driver                        { return nil }
