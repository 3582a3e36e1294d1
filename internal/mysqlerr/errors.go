// Package mysqlerr says what an error means for its connection, its statement, its
// transaction, and the unit of work that might be run again. It is a table of the
// errors of MySQL and its relatives (errors.go), with the errors that the function of a
// unit may swallow (handlederrors.go). It decides nothing: package connector and the
// root act on what it says, and the root exports it as Class and Classify.
package mysqlerr

import (
	"context"
	"crypto/tls"
	"database/sql/driver"
	"errors"
	"io"
	"io/fs"
	"net"
	"strings"
	"syscall"

	"github.com/go-sql-driver/mysql"
)

// Class is what an error means: a set of the flags below. 0 is an error that
// leaves connection and transaction as good as they were, such as a duplicate
// key.
type Class uint16

const (
	// ConnDead: the connection cannot be used again.
	ConnDead Class = 1 << iota
	// NotRun: the statement was refused, or never read; it did nothing.
	NotRun
	// Elsewhere: this server will not do the work now; another one, or a new
	// connection after a failover, may.
	Elsewhere
	// StatementUndone: the server has undone this statement alone. What the
	// transaction did before is still there, and would be committed.
	StatementUndone
	// TxGone: the server has ended the transaction, or will never commit it.
	// A later statement would run outside it, and survive a rollback.
	TxGone
	// CommitUnknown: as the answer to COMMIT, or in place of one, it leaves open
	// whether the transaction was committed.
	CommitUnknown
	// Retry: a unit of work that met it may succeed when it is run again.
	Retry
	// BackOff: but not at once.
	BackOff
)

var classNames = []struct {
	name  string
	value Class
}{
	{"ConnDead", ConnDead}, {"NotRun", NotRun}, {"Elsewhere", Elsewhere},
	{"StatementUndone", StatementUndone}, {"TxGone", TxGone}, {"CommitUnknown", CommitUnknown},
	{"Retry", Retry}, {"BackOff", BackOff},
}

// String lists the flags of c.
func (c Class) String() string {
	var names []string
	for _, f := range classNames {
		if c&f.value != 0 {
			names = append(names, f.name)
		}
	}
	if names == nil {
		return "0"
	}
	return strings.Join(names, "|")
}

// Flags that go together.
const (
	retryLater        = Retry | BackOff
	LostConn          = ConnDead | TxGone | CommitUnknown | Retry
	NotSent           = ConnDead | NotRun | TxGone | Retry // lost before the server read the request
	rolledBack        = TxGone | retryLater                // the whole transaction was rolled back
	serverUnavailable = NotRun | Elsewhere | retryLater    // refused by a server that is read-only or not ready
)

// serverError is one row of the table.
type serverError struct {
	number uint16
	state  string // SQLSTATE, as documented; the number decides
	text   string // when set, the message must contain it: the number is overloaded
	name   string
	family string
	class  Class
	source string
}

// serverErrors is the table. The first row with the number whose text is contained in
// the message counts.
var serverErrors = []serverError{
	// Connecting.
	{1040, "08004", "", "ER_CON_COUNT_ERROR", "all", NotRun | retryLater,
		"MySQL error reference: too many connections"},
	{1203, "42000", "", "ER_TOO_MANY_USER_CONNECTIONS", "all", NotRun | retryLater,
		"MySQL error reference: user already has more than max_user_connections"},
	{1226, "42000", "max_user_connections", "ER_USER_LIMIT_REACHED", "all", NotRun | retryLater,
		"MySQL error reference; the other limits of the code are by the hour"},
	{1637, "HY000", "", "ER_TOO_MANY_CONCURRENT_TRXS", "MySQL, MariaDB", NotRun | retryLater,
		"MySQL error reference: too many active concurrent transactions"},
	{1135, "HY000", "", "ER_CANT_CREATE_THREAD", "MySQL, MariaDB", NotRun | retryLater,
		"MySQL error reference: the server cannot start a thread for the connection, mostly for want of memory"},

	// The connection, or the server, is going.
	{1053, "08S01", "", "ER_SERVER_SHUTDOWN", "MySQL, MariaDB", LostConn | BackOff,
		"MySQL error reference: server shutdown in progress"},
	{1077, "HY000", "", "ER_NORMAL_SHUTDOWN", "MySQL, MariaDB", LostConn | BackOff, "MySQL error reference"},
	{1079, "HY000", "", "ER_SHUTDOWN_COMPLETE", "MySQL, MariaDB", LostConn | BackOff, "MySQL error reference"},
	{1080, "08S01", "", "ER_FORCING_CLOSE", "MySQL, MariaDB", LostConn | BackOff, "MySQL error reference: forcing close of thread"},
	{1152, "08S01", "", "ER_ABORTING_CONNECTION", "MySQL, MariaDB", LostConn, "MySQL error reference"},
	{1153, "08S01", "", "ER_NET_PACKET_TOO_LARGE", "MySQL, MariaDB", ConnDead | NotRun | TxGone,
		"MySQL manual, Packet Too Large: the server closes the connection; it would again"},
	{1158, "08S01", "", "ER_NET_READ_ERROR", "MySQL, MariaDB", LostConn, "MySQL error reference"},
	{1159, "08S01", "", "ER_NET_READ_INTERRUPTED", "MySQL, MariaDB", LostConn, "MySQL error reference"},
	{1160, "08S01", "", "ER_NET_ERROR_ON_WRITE", "MySQL, MariaDB", LostConn, "MySQL error reference"},
	{1161, "08S01", "", "ER_NET_WRITE_INTERRUPTED", "MySQL, MariaDB", LostConn, "MySQL error reference"},
	{1184, "08S01", "", "ER_NEW_ABORTING_CONNECTION", "MySQL, MariaDB", LostConn, "MySQL error reference"},
	{1927, "70100", "", "ER_CONNECTION_KILLED", "MariaDB", LostConn, "MariaDB error reference: connection was killed"},
	{3169, "HY000", "", "ER_SESSION_WAS_KILLED", "MySQL", LostConn, "MySQL error reference: session was killed"},
	{3032, "HY000", "", "ER_SERVER_OFFLINE_MODE", "MySQL", LostConn | BackOff,
		"MySQL error reference: offline_mode ends the sessions of ordinary users"},
	{4031, "HY000", "inactivity", "ER_CLIENT_INTERACTION_TIMEOUT", "MySQL", NotSent,
		"MySQL 8.0.24 release notes: the idle connection was closed before anything was read; seen on MySQL 9.7. " +
			"To MariaDB the number is that of a trigger that does not exist (ER_REFERENCED_TRG_DOES_NOT_EXIST)"},
	{1105, "HY000", "The last transaction was aborted due to", "ER_UNKNOWN_ERROR", "Aurora", rolledBack,
		"AWS re:Post and the retry lists of Laravel and PeerDB: said by the first statement after a Zero Downtime Patch or " +
			"Seamless Scaling, which keep the connection and roll its transaction back"},

	// The server does not take writes, or nothing at all, now.
	{1290, "HY000", "read-only", "ER_OPTION_PREVENTS_STATEMENT", "MySQL, MariaDB, Aurora", serverUnavailable,
		"read_only or super_read_only is on, as after a failover; the number is shared with other options; seen on MariaDB 10.11 and MySQL 9.7"},
	{1792, "25006", "", "ER_CANT_EXECUTE_IN_READ_ONLY_TRANSACTION", "MySQL, MariaDB, Aurora", serverUnavailable,
		"MySQL error reference; transaction_read_only is on, as on an Aurora reader"},
	{1836, "HY000", "", "ER_READ_ONLY_MODE", "MySQL, TiDB, Aurora", serverUnavailable,
		"MySQL error reference: running in read-only mode; seen on TiDB"},
	{4094, "HY000", "", "queries are blocked", "MySQL Group Replication", serverUnavailable,
		"seen on MySQL 9.7: group_replication_set_as_primary() with a time limit refuses all statements until the primary has changed"},
	{1047, "08S01", "WSREP", "ER_UNKNOWN_COM_ERROR", "Galera", serverUnavailable | TxGone,
		"a node without quorum answers pings and SELECT 1 and refuses all else; seen on MariaDB 10.11 with galera-4"},

	// Locks.
	{1205, "HY000", "", "ER_LOCK_WAIT_TIMEOUT", "MySQL, MariaDB, TiDB", StatementUndone | retryLater,
		"MySQL manual, InnoDB Error Handling: the statement alone, with innodb_rollback_on_timeout the transaction; seen on MariaDB 10.11 and MySQL 9.7"},
	{1206, "HY000", "", "ER_LOCK_TABLE_FULL", "MySQL, MariaDB", rolledBack,
		"MySQL source, row_mysql_handle_errors: DB_LOCK_TABLE_FULL rolls the transaction back"},
	{1213, "40001", "", "ER_LOCK_DEADLOCK", "MySQL, MariaDB, Galera, TiDB", rolledBack,
		"MySQL manual, InnoDB Error Handling: the transaction is rolled back; Galera: a certification conflict, on any statement; seen on MariaDB 10.11 and MySQL 9.7"},
	{1614, "XA102", "", "ER_XA_RBDEADLOCK", "MySQL, MariaDB", rolledBack, "MySQL error reference: XA branch rolled back, deadlock"},
	{1020, "HY000", "", "ER_CHECKREAD", "MariaDB", rolledBack,
		"MariaDB manual, innodb_snapshot_isolation: record has changed since last read; seen on MariaDB 10.11 and 11.8, where it is like a deadlock"},
	{1305, "42000", "SAVEPOINT", "ER_SP_DOES_NOT_EXIST", "MySQL, MariaDB", StatementUndone,
		"MySQL manual, SAVEPOINT: savepoints end with their transaction, so this may be another transaction than the program thinks; the number is shared with routines"},
	{3058, "HY000", "", "ER_USER_LOCK_DEADLOCK", "MySQL", StatementUndone | retryLater,
		"MySQL manual, GET_LOCK: a deadlock of named locks; the call is refused and the transaction goes on; seen on MySQL 9.7"},
	{3572, "HY000", "", "ER_LOCK_NOWAIT", "MySQL", StatementUndone,
		"MySQL manual, Locking Read Concurrency with NOWAIT: the statement asked not to wait"},

	// The statement was stopped on purpose.
	{1317, "70100", "code = Aborted", "ER_QUERY_INTERRUPTED", "Vitess", rolledBack | CommitUnknown,
		"Vitess source, vterrors: ABORTED as of newer versions"},
	{1317, "70100", "", "ER_QUERY_INTERRUPTED", "MySQL, MariaDB, TiDB", StatementUndone | CommitUnknown,
		"KILL QUERY; MySQL manual, KILL Statement: the statement is rolled back, the transaction is not"},
	{1969, "70100", "", "ER_STATEMENT_TIMEOUT", "MariaDB", StatementUndone | CommitUnknown,
		"MariaDB manual, max_statement_time"},
	{3024, "HY000", "", "ER_QUERY_TIMEOUT", "MySQL", StatementUndone | CommitUnknown,
		"MySQL manual, MAX_EXECUTION_TIME"},

	// The statement came at a bad moment.
	{1412, "HY000", "", "ER_TABLE_DEF_CHANGED", "MySQL, MariaDB", StatementUndone | retryLater,
		"MySQL manual, Consistent Nonlocking Reads: the table was altered after the transaction's snapshot; please retry transaction; seen on all three"},
	{1615, "HY000", "", "ER_NEED_REPREPARE", "MySQL, MariaDB", StatementUndone | retryLater,
		"MySQL manual, Caching of Prepared Statements: what it uses changes faster than it can be prepared again"},
	{1041, "HY000", "", "ER_OUT_OF_RESOURCES", "MySQL, MariaDB", StatementUndone | CommitUnknown | retryLater,
		"MySQL error reference: out of memory"},

	// COMMIT itself.
	{1180, "HY000", "", "ER_ERROR_DURING_COMMIT", "Galera, MySQL, MariaDB", TxGone | CommitUnknown,
		"Galera losing its quorum in the middle of a COMMIT: the outcome is open; seen on MariaDB 10.11 with galera-4"},
	{1181, "HY000", "", "ER_ERROR_DURING_ROLLBACK", "MySQL, MariaDB", ConnDead | TxGone, "MySQL error reference"},
	{3100, "HY000", "", "ER_RUN_HOOK_ERROR", "MySQL Group Replication", TxGone | CommitUnknown,
		"MySQL error reference: error on observer while running a replication hook"},
	{3101, "40000", "", "ER_TRANSACTION_ROLLBACK_DURING_COMMIT", "MySQL Group Replication", rolledBack,
		"MySQL error reference: the plugin instructed the server to roll back"},

	// Proxies.
	{2006, "HY000", "", "CR_SERVER_GONE_ERROR", "ProxySQL", LostConn,
		"ProxySQL source, MySQL_Session: the backend's connection was lost"},
	{2013, "HY000", "", "CR_SERVER_LOST", "ProxySQL", LostConn,
		"ProxySQL source, MySQL_Session: the backend's connection was lost during the query"},
	{9001, "HY000", "Max connect timeout", "max connect timeout", "ProxySQL", NotRun | TxGone | retryLater,
		"ProxySQL documentation, mysql-connect_timeout_server_max: no backend was reached"},
	{1105, "HY000", "code = Aborted", "ER_UNKNOWN_ERROR", "Vitess", rolledBack | CommitUnknown,
		"Vitess source, vterrors: ABORTED, such as a transaction that exceeded its time"},
	{1105, "HY000", "code = Unavailable", "ER_UNKNOWN_ERROR", "Vitess", rolledBack | CommitUnknown,
		"Vitess source, vterrors: UNAVAILABLE, as during a reparent"},
	{1105, "HY000", "code = ResourceExhausted", "ER_UNKNOWN_ERROR", "Vitess, PlanetScale", rolledBack | CommitUnknown,
		"Vitess source, vterrors: RESOURCE_EXHAUSTED, a pool of connections or of transactions is full"},

	// TiDB.
	{8002, "HY000", "", "ErrForUpdateCantRetry", "TiDB", rolledBack, "TiDB manual, Error Codes"},
	{8005, "HY000", "", "ErrWriteConflictInTiDB", "TiDB", rolledBack, "TiDB manual, Error Codes"},
	{8022, "HY000", "", "ErrTxnRetryable", "TiDB", rolledBack, "TiDB manual, Error Codes: the commit failed and may be retried"},
	{8027, "HY000", "", "ErrInfoSchemaExpired", "TiDB", rolledBack,
		"TiDB manual, Error Codes: the node's copy of the schema is out of date, until it reaches the cluster again"},
	{8028, "HY000", "", "ErrInfoSchemaChanged", "TiDB", rolledBack, "TiDB manual, Error Codes: the schema changed under the transaction"},
	{8147, "HY000", "", "ErrLazyUniquenessCheckFailure", "TiDB", TxGone, "TiDB manual, Constraints: the transaction is ended"},
	{8501, "HY000", "", "ErrResultUndetermined", "TiDB", ConnDead | TxGone | CommitUnknown, "TiDB source, errno: execution result undetermined"},
	{9001, "HY000", "", "ErrPDServerTimeout", "TiDB", rolledBack | CommitUnknown, "TiDB manual, Error Codes"},
	{9002, "HY000", "", "ErrTiKVServerTimeout", "TiDB", rolledBack | CommitUnknown, "TiDB manual, Error Codes"},
	{9003, "HY000", "", "ErrTiKVServerBusy", "TiDB", rolledBack | CommitUnknown, "TiDB manual, Error Codes"},
	{9004, "HY000", "", "ErrResolveLockTimeout", "TiDB", rolledBack | CommitUnknown, "TiDB manual, Error Codes"},
	{9005, "HY000", "", "ErrRegionUnavailable", "TiDB", rolledBack | CommitUnknown, "TiDB manual, Error Codes"},
	{9007, "HY000", "", "ErrWriteConflict", "TiDB", rolledBack, "TiDB manual, Error Codes"},
}

// serializationFailure is the SQLSTATE by which a server of any kind says that
// the transaction was rolled back and may be run again (SQL:2016, 40001).
const serializationFailure = "40001"

// Classify says what err means, also if it is wrapped. The end of a context is 0: it
// says nothing about the server. ErrCommitUnknown is never Retry, whatever its cause:
// the work may have been applied.
func Classify(err error) Class {
	if errors.Is(err, ErrCommitUnknown) {
		return of(err)&^Retry | CommitUnknown
	}
	return of(err)
}

func of(err error) Class {
	var my *mysql.MySQLError
	var own classifier
	switch {
	case err == nil:
		return 0
	case errors.As(err, &own):
		return own.Class()
	case errors.As(err, &my):
		return ClassifyServer(my)
	case errors.Is(err, driver.ErrBadConn), errors.Is(err, mysql.ErrBusyBuffer):
		return NotSent
	case errors.Is(err, mysql.ErrInvalidConn), errors.Is(err, mysql.ErrPktSync),
		errors.Is(err, mysql.ErrPktSyncMul), errors.Is(err, mysql.ErrMalformPkt), IsNetworkLoss(err):
		return LostConn
	}
	return 0
}

// classifier is an error of livepool's own with a class of its own.
type classifier interface {
	error
	Class() Class
}

// ConnectClass is the class of a failure to connect with this cause.
func ConnectClass(cause error) Class {
	switch {
	case Number(cause) != 0, errors.Is(cause, mysql.ErrBusyBuffer):
		return of(cause)
	case IsUnwritten(cause):
		return NotSent
	case CallerGaveUp(cause):
		return 0
	case IsMisconfigured(cause):
		return NotRun
	}
	return NotRun | retryLater
}

// ClassifyServer says what an error of a server means.
func ClassifyServer(my *mysql.MySQLError) Class {
	for _, row := range serverErrors {
		if row.number == my.Number && strings.Contains(my.Message, row.text) {
			return row.class
		}
	}
	if string(my.SQLState[:]) == serializationFailure {
		return rolledBack
	}
	return 0
}

// IsMisconfigured is true for a failure to connect that every other attempt would meet
// too: client and server do not agree on how to talk.
func IsMisconfigured(err error) bool {
	var op *net.OpError
	for _, fatal := range []error{mysql.ErrNoTLS, mysql.ErrCleartextPassword, mysql.ErrNativePassword,
		mysql.ErrOldPassword, mysql.ErrUnknownPlugin, mysql.ErrOldProtocol} {
		if errors.Is(err, fatal) {
			return true
		}
	}
	switch {
	case errors.As(err, new(*tls.CertificateVerificationError)), errors.As(err, new(tls.RecordHeaderError)),
		errors.As(err, new(*net.AddrError)), errors.As(err, new(net.UnknownNetworkError)):
		return true
	}
	return errors.As(err, &op) && op.Op == "remote error" // so crypto/tls calls a refusal by the other side
}

// Number is the number of a server's error, 0 for any other error.
func Number(err error) uint16 {
	if err == nil {
		return 0 // fast path: what follows allocates
	}
	var my *mysql.MySQLError
	if errors.As(err, &my) {
		return my.Number
	}
	return 0
}

// IsUnwritten says whether an attempt to connect failed because a request of it could not be
// written. If that was the driver's answer to the greeting, its error is one that it does not
// export (errBadConnNoWrite).
func IsUnwritten(err error) bool {
	if errors.Is(err, driver.ErrBadConn) {
		return true
	}
	for ; err != nil; err = errors.Unwrap(err) {
		if err.Error() == "bad connection" {
			return true
		}
	}
	return false
}

// IsNetworkLoss is true for the errors of a socket whose other end is lost. It is not
// true for the end of a context, though that is a net.Error too, nor for a file's error.
func IsNetworkLoss(err error) bool {
	var op *net.OpError
	var file *fs.PathError
	switch {
	case errors.As(err, &file):
		return false
	case errors.As(err, &op), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed):
		return true
	}
	for _, errno := range []syscall.Errno{syscall.ECONNRESET, syscall.ECONNABORTED, syscall.EPIPE, syscall.ETIMEDOUT} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// IsLoginRefused says whether a server refused the user or the password.
func IsLoginRefused(err error) bool {
	switch Number(err) {
	case 1045, 1698:
		return true
	}
	return false
}

// IsTooManyConnections says whether a server refused a connection because there are too many.
func IsTooManyConnections(err error) bool {
	switch Number(err) {
	case 1040, 1203:
		return true
	case 1226: // its other limits are by the hour
		return Classify(err)&Retry != 0
	}
	return false
}

// CallerGaveUp reports whether err says that the caller's context ended.
func CallerGaveUp(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// IsNodeNotReady says whether err is the refusal of a Galera node that does no work.
func IsNodeNotReady(err error) bool {
	var my *mysql.MySQLError
	return errors.As(err, &my) && my.Number == 1047 && strings.Contains(my.Message, "WSREP")
}

// ErrUnreachable is what errors.Is finds in the error of whoever needed a connection, if
// none could be opened for want of a server that takes it.
var ErrUnreachable = errors.New("livepool: the server cannot be reached")

// ErrCommitUnknown matches the error of a commit whose outcome is open: COMMIT was sent,
// and its answer was lost. The work was applied once or not at all.
var ErrCommitUnknown = errors.New("livepool: the outcome of the commit is unknown")

// IsWriteRefusal says whether err is the error of a server that accepts no writes now. It
// is not true for 1792, which may come from a transaction that was begun as read-only.
func IsWriteRefusal(err error) bool {
	switch Number(err) {
	case 1290:
		return Classify(err)&Elsewhere != 0
	case 1836, 4094:
		return true
	}
	return false
}
