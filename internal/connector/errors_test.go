package connector

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
	"github.com/livepool/livepool/internal/mysqlerr"
	"github.com/livepool/livepool/internal/wire"
)

// The errors on which money depends, without the table.
func TestWhatErrorsMean(t *testing.T) {
	const lost = mysqlerr.ConnDead | mysqlerr.TxGone | mysqlerr.CommitUnknown | mysqlerr.Retry
	server := func(number uint16, message string) error {
		return &mysql.MySQLError{Number: number, Message: message}
	}
	_, missing := os.Open("/no such file")
	for _, tt := range []struct {
		err  error
		want mysqlerr.Class
	}{
		{nil, 0},
		{server(1062, "Duplicate entry"), 0},
		{server(1064, "You have an error in your SQL syntax"), 0},
		{server(1213, "Deadlock found when trying to get lock; try restarting transaction"), mysqlerr.TxGone | mysqlerr.Retry | mysqlerr.BackOff},
		{server(1205, "Lock wait timeout exceeded; try restarting transaction"), mysqlerr.StatementUndone | mysqlerr.Retry | mysqlerr.BackOff},
		{server(1290, "The MySQL server is running with the --super-read-only option so it cannot execute this statement"), mysqlerr.NotRun | mysqlerr.Elsewhere | mysqlerr.Retry | mysqlerr.BackOff},
		{server(1290, "The MySQL server is running with the --skip-grant-tables option so it cannot execute this statement"), 0},
		{server(1047, "WSREP has not yet prepared node for application use"), mysqlerr.NotRun | mysqlerr.Elsewhere | mysqlerr.TxGone | mysqlerr.Retry | mysqlerr.BackOff},
		{server(1047, "Unknown command"), 0},
		{server(1180, "Got error 6 \"No such device or address\" during COMMIT"), mysqlerr.TxGone | mysqlerr.CommitUnknown},
		{server(1317, "Query execution was interrupted"), mysqlerr.StatementUndone | mysqlerr.CommitUnknown},
		{server(4031, "The client was disconnected by the server because of inactivity"), mysqlerr.ConnDead | mysqlerr.NotRun | mysqlerr.TxGone | mysqlerr.Retry},
		{server(4031, "Referenced trigger 'a' for the given action time and event type does not exist"), 0}, // MariaDB's
		{wire.ErrUnsolicited, mysqlerr.ConnDead | mysqlerr.NotRun | mysqlerr.TxGone | mysqlerr.Retry},
		{&notCommittedError{cause: wire.ErrUnsolicited}, mysqlerr.ConnDead | mysqlerr.NotRun | mysqlerr.TxGone | mysqlerr.Retry},
		{mysql.ErrBusyBuffer, mysqlerr.ConnDead | mysqlerr.NotRun | mysqlerr.TxGone | mysqlerr.Retry},
		{server(1105, "The last transaction was aborted due to Zero Downtime Patch. Please retry."), mysqlerr.TxGone | mysqlerr.Retry | mysqlerr.BackOff},
		{server(1105, "The last transaction was aborted due to Seamless Scaling. Please retry."), mysqlerr.TxGone | mysqlerr.Retry | mysqlerr.BackOff},
		{server(1105, "unknown error"), 0},
		{server(1045, "Access denied for user"), 0},
		{server(1040, "Too many connections"), mysqlerr.NotRun | mysqlerr.Retry | mysqlerr.BackOff},
		{&mysql.MySQLError{Number: 60001, SQLState: [5]byte([]byte("40001"))}, mysqlerr.TxGone | mysqlerr.Retry | mysqlerr.BackOff},
		{driver.ErrBadConn, mysqlerr.ConnDead | mysqlerr.NotRun | mysqlerr.TxGone | mysqlerr.Retry},
		{fmt.Errorf("job: %w", driver.ErrBadConn), mysqlerr.ConnDead | mysqlerr.NotRun | mysqlerr.TxGone | mysqlerr.Retry},
		{mysql.ErrInvalidConn, lost},
		{mysql.ErrPktSync, lost},
		{io.EOF, lost},
		{io.ErrUnexpectedEOF, lost},
		{&net.OpError{Op: "read", Err: syscall.ECONNRESET}, lost},
		{syscall.EPIPE, lost},
		{&ConnectError{Text: "livepool: connecting failed", Cause: &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}}, mysqlerr.NotRun | mysqlerr.Retry | mysqlerr.BackOff},
		{&ConnectError{Text: "livepool: connecting failed", Cause: os.ErrDeadlineExceeded}, mysqlerr.NotRun | mysqlerr.Retry | mysqlerr.BackOff},
		{&ConnectError{Text: "livepool: connecting failed", Cause: context.Canceled}, 0},
		{&ConnectError{Text: "livepool: connecting failed", Cause: server(1045, "Access denied")}, 0},
		{&ConnectError{Text: "livepool: connecting failed", Cause: mysql.ErrNoTLS}, mysqlerr.NotRun},
		{&ConnectError{Text: "livepool: connecting failed", Cause: mysql.ErrUnknownPlugin}, mysqlerr.NotRun},
		{&ConnectError{Text: "livepool: connecting failed", Cause: &tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}}, mysqlerr.NotRun},
		{&ConnectError{Text: "livepool: connecting failed", Cause: &net.OpError{Op: "remote error", Err: errors.New("tls: bad certificate")}}, mysqlerr.NotRun},
		{&ConnectError{Text: "livepool: connecting failed", Cause: &net.OpError{Op: "dial", Err: net.UnknownNetworkError("tpc")}}, mysqlerr.NotRun},
		{&commitUnknownError{cause: mysql.ErrInvalidConn}, lost &^ mysqlerr.Retry},
		{fmt.Errorf("job: %w", errors.Join(&commitUnknownError{cause: server(1053, "Server shutdown in progress")}, driver.ErrBadConn)), (lost | mysqlerr.BackOff) &^ mysqlerr.Retry},
		{fmt.Errorf("job: %w", mysqlerr.ErrCommitUnknown), mysqlerr.CommitUnknown},
		{&poisonedError{"statement refused", server(1213, "Deadlock"), false}, mysqlerr.TxGone | mysqlerr.Retry | mysqlerr.BackOff},
		{context.Canceled, 0},
		{context.DeadlineExceeded, 0},
		{missing, 0},
		{fs.ErrNotExist, 0},
		{mysql.ErrPktTooLarge, 0},
		{errors.New("sold out"), 0},
	} {
		if got := mysqlerr.Classify(tt.err); got != tt.want {
			t.Errorf("%v: %s, want %s", tt.err, got, tt.want)
		}
	}
}

func TestRefusedCommitIsADefiniteFailure(t *testing.T) {
	for number, refused := range map[uint16]bool{
		1213: true, 1205: true, 1290: true, 1836: true, 4094: true, 3101: true, 4031: true, 9007: true,
		1180: false, 1053: false, 1317: false, 1927: false, 3169: false, 3100: false, 8501: false, 60002: false,
	} {
		err := &mysql.MySQLError{Number: number, Message: "read-only, inactivity"}
		if got := isCommitRefusal(mysqlerr.Classify(err)); got != refused {
			t.Errorf("%d in answer to COMMIT: proves that nothing was committed: %v, want %v", number, got, refused)
		}
	}
}

func (fakeConnector) Connect(context.Context) (driver.Conn, error) { return nil, io.EOF }
func (fakeConnector) Driver() driver.Driver                        { return nil }
