package main

// This file is the table of the suites: how each is run, and what may differ.

import (
	"maps"

	"github.com/livepool/livepool/internal/lab/server"
)

// A suite is the tests of one package of another project.
type suite struct {
	name string
	pkg  string
	// outside: livepool itself imports the package, so that only the tests from outside of it can
	// import livepool.
	outside   bool
	edits     []edit
	databases []string // which are made anew before each run; none: it needs no server
	args, env []string // of the test program; {dsn}, {addr}, {user} and {password} are the server's
	// explained says of each test whose outcome differs why that is right.
	explained, onMariaDB map[string]string // onMariaDB: what differs there only
}

// explanations are those that count on a server of that kind.
func (s suite) explanations(kind server.Kind) map[string]string {
	all := map[string]string{}
	maps.Copy(all, s.explained)
	if kind != server.MySQL {
		maps.Copy(all, s.onMariaDB)
	}
	return all
}

const (
	dialGoesOn = "it wants the dial to end with its caller's context; livepool's goes on for the next caller, so that a server that answers slowly is connected to at last"
	killed     = "it wants the statement whose context has ended to run to its end on the server, and skips its rest, because livepool has killed it there (MySQL only ends the `SLEEP` of such an `INSERT`)"
	outageWait = "it compares the dialer's error by `==`, and at once; livepool waits for a server that cannot be reached (`OutageWait`), and wraps the error"
)

var suites = []suite{
	{
		name:      "go-sql-driver/mysql",
		pkg:       "github.com/go-sql-driver/mysql",
		outside:   true,
		databases: []string{"conformance"},
		env:       []string{"MYSQL_TEST_ADDR={addr}", "MYSQL_TEST_USER={user}", "MYSQL_TEST_PASS={password}", "MYSQL_TEST_DBNAME=conformance"},
		args:      []string{"-test.skip=^TestConnectorReturnsTimeout$"}, // see leftOut
		edits: []edit{{file: "driver_test.go", from: `conn\.\(\*mysqlConn\)`, to: `raw(conn).(*mysqlConn)`, add: `
// raw is how the driver's own connection is had of livepool's.
func raw(conn any) any {
	if c, ok := conn.(interface{ Raw() driver.Conn }); ok {
		return c.Raw()
	}
	return conn
}
`}},
		explained: map[string]string{
			"TestConnectorTimeoutsDuringOpen":  dialGoesOn,
			"TestConnectorTimeoutsWatchCancel": dialGoesOn,
			"TestContextCancelBegin":           "it wants `driver.ErrBadConn`, by `==`, of a `BEGIN` on a `sql.Conn` whose transaction was cut by its context; livepool refuses it, too, and says why",
			"TestDialNonRetryableNetErr":       outageWait,
			"TestDialTemporaryNetErr":          outageWait,
			"TestDialUnknownError":             "it compares the dialer's error by `==`; livepool's wraps it, and says what was to be connected to and for how long",
			"TestEmptyPassword":                "it wants the error's text to begin with `Error 1045`; livepool's says first what was to be connected to, and wraps that error",
			"TestQueryMultipleResults":         "within `sql.Conn.Raw` it leaves a result open and sends the next query; livepool refuses that, because the driver does not always notice what the protocol does not allow",
			"TestRejectReadOnly":               "it makes the session of a pooled connection read-only, and wants the next statement of the pool to fail; livepool closes a connection that was changed so when it is returned",
		},
		onMariaDB: map[string]string{
			"TestContextCancelExec/default":      killed,
			"TestContextCancelQuery/default":     killed,
			"TestContextCancelStmtExec/default":  killed,
			"TestContextCancelStmtQuery/default": killed,
		},
	},
	{
		name:    "database/sql",
		pkg:     "database/sql",
		outside: true,
		edits: []edit{{file: "sql_test.go", from: `([\w.\[\]]+)\.\(\*(fakeConnector|fakeConn|fakeTx|ctxOnlyConn|rowsCursor)\)`, to: `bare($1).(*$2)`, add: `
// bare is what livepool has wrapped.
func bare(v any) any {
	if b, ok := v.(interface{ Bare() any }); ok {
		return b.Bare()
	}
	return v
}
`}},
		explained: map[string]string{
			"TestPendingConnsAfterErr": "it compares the error of a failed connect by `==`; livepool's wraps it, and says what was to be connected to and for how long",
			"TestTxEndBadConn":         "it wants `driver.ErrBadConn` from `Commit`; livepool never says that in a transaction, because it means that the statement may be sent again",
			"TestTxErrBadConn":         "its connection is bad at every second question; livepool asks a new one once more than `database/sql`, so that it is `BEGIN` which finds it bad, three times",
		},
	},
	{
		name:      "xorm",
		pkg:       "xorm.io/xorm/tests",
		databases: []string{"xorm_test"},
		args:      []string{"-db=mysql", "-conn_str={user}:{password}@tcp({addr})/xorm_test?charset=utf8mb4", "-show_sql=false"},
		// Without the drivers of other databases.
		edits: []edit{{file: "engine_test.go", from: `\n\t_ "(?:gitee\.com/travelliu/dm|github\.com/(?:jackc/pgx|lib/pq|mattn|microsoft|ziutek)\b.*|modernc\.org/sqlite)"`}},
	},
	{
		name:      "sqlx",
		pkg:       "github.com/jmoiron/sqlx",
		databases: []string{"sqlx"},
		env:       []string{"SQLX_MYSQL_DSN={dsn}sqlx?parseTime=true", "SQLX_POSTGRES_DSN=skip", "SQLX_SQLITE_DSN=skip"},
	},
	{
		name:      "goqu",
		pkg:       "github.com/doug-martin/goqu/v9/dialect/mysql",
		databases: []string{"goqu"},
		env:       []string{"MYSQL_URI={dsn}goqu?parseTime=true"},
	},
	{
		// Its four servers are four databases here.
		name:      "GORM (dbresolver)",
		pkg:       "gorm.io/plugin/dbresolver",
		databases: []string{"gorm9911", "gorm9912", "gorm9913", "gorm9914"},
		env:       []string{"GORM_DSN={dsn}gorm"},
		edits:     []edit{{file: "dbresolver_test.go", from: `"gorm:gorm@tcp\(localhost:(\d+|%v)\)/gorm\?`, to: `os.Getenv("GORM_DSN")+"$1?`}},
	},
	// These need no server: livepool wraps sqlmock.
	{name: "go-sqlmock", pkg: "github.com/DATA-DOG/go-sqlmock"},
	{name: "ent (schema)", pkg: "entgo.io/ent/dialect/sql/schema"},
	{name: "ent (sqlgraph)", pkg: "entgo.io/ent/dialect/sql/sqlgraph"},
	{name: "ent (sql)", pkg: "entgo.io/ent/dialect/sql"},
	{
		name: "goqu (sqlmock)",
		pkg:  "github.com/doug-martin/goqu/v9",
		explained: map[string]string{
			"TestDatabaseSuite/TestWithTx": "its mock has one connection, whose `ROLLBACK` fails; livepool closes such a connection, because the transaction may still be open on it",
		},
	},
}

// leftOut are the suites that cannot be run like this, and why.
var leftOut = [][2]string{
	{"go-sql-driver/mysql: `TestConnectorReturnsTimeout`", "it dials an address on the internet, and crashes if that answers"},
	{"GORM", "`gorm.io/gorm/tests` is a module of its own, which could not be fetched; the plugin `dbresolver`, whose tests need MySQL, stands for it"},
	{"ent", "`entc/integration` is a module of its own, and its servers are started by Docker Compose"},
	{"bun", "`internal/dbtest` is a module of its own, which could not be fetched"},
	{"golang-migrate", "its tests of MySQL start containers"},
	{"goose, jet", "their modules hold no tests that need only a DSN"},
}
