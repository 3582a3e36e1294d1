package storm

import (
	"os"
	"regexp"
	"runtime/debug"
	"testing"
)

// A Framework is a row of the table in docs/frameworks.md, which is written from here:
//
//	go test ./examples/internal/storm -run Table -update
type Framework struct {
	Name      string
	Dir       string // of its example
	Module    string // whose version was tested
	Generated string // instead, a file in Dir of the generator that it is, which says its version
	Pool      string // how it is opened on the pool
	Unit      string // how one has it in a unit of work
	Nested    string // its own transactions, in a unit
	Nests     bool   // they may be inside each other; the test holds it to that
	Prepared  string // its prepared statements
	Remarks   string
}

// A Tool applies migrations; it is a row of the other table there.
type Tool struct {
	Name    string
	Dir     string // of its example
	Module  string // whose version was tested
	Use     string // what it is given
	Lock    string // what keeps two runs apart
	Restart string // what a restart of the server means for it
	Remarks string
}

// Frameworks are those that are tested, by name.
var Frameworks = []Framework{
	{
		Name: "bun", Dir: "bun", Module: "github.com/uptrace/bun",
		Pool:     "`bun.NewDB(pool.DB, mysqldialect.New())`",
		Unit:     "the same on `s.DB()`",
		Nested:   "`RunInTx`: savepoints, also inside each other",
		Nests:    true,
		Prepared: "none of its own",
		Remarks:  "`NewDB` asks the server for its version, a round trip in each unit; `db.NewInsert().Conn(s)`, for single queries, does not",
	},
	{
		Name: "ent", Dir: "ent", Module: "entgo.io/ent",
		Pool:     "`entsql.OpenDB(dialect.MySQL, pool.DB)`",
		Unit:     "the same on `s.DB()`",
		Nested:   "`Tx`: a savepoint",
		Prepared: "none of its own",
		Remarks:  "tested below the code that ent generates, which is opened by `ent.NewClient(ent.Driver(drv))`",
	},
	{
		Name: "goqu", Dir: "goqu", Module: "github.com/doug-martin/goqu/v9",
		Pool:     "`goqu.New(\"mysql\", pool.DB)`",
		Unit:     "the same on `s.DB()`",
		Nested:   "`WithTx`: a savepoint",
		Prepared: "`Prepared(true)`: arguments apart from the text",
		Remarks:  "here as elsewhere: without `Prepared(true)` a time has no fractions of a second, and a `uint64` above the greatest `int64` is sent as a negative number",
	},
	{
		Name: "GORM", Dir: "gorm", Module: "gorm.io/gorm",
		Pool:     "`gorm.Open(mysql.New(mysql.Config{Conn: pool.DB}))`",
		Unit:     "`Unit(ctx, s, db)` of the example, on `s.Tx(ctx)`",
		Nested:   "`Transaction`: savepoints, also inside each other",
		Nests:    true,
		Prepared: "`PrepareStmt`: on the pool. In a unit statements are not shared with others, who would wait for each other and fail with each other's errors",
		Remarks:  "not `s.DB()`: `PrepareStmt` replaces what it does not know by the pool. dbresolver leaves a unit alone",
	},
	{
		Name: "Jet", Dir: "jet", Module: "github.com/go-jet/jet/v2",
		Pool:     "the pool itself: `stmt.QueryContext(ctx, pool, &dest)`",
		Unit:     "`s` itself",
		Nested:   "none of its own: `s.DB().BeginTx` is a savepoint",
		Prepared: "`stmtcache.New(pool.DB)`, and another on `s.DB()`",
		Remarks:  "tested on tables written by hand in place of generated ones. In a transaction on the pool its `stmtcache` prepares on another connection, and so needs two",
	},
	{
		Name: "otelsql", Dir: "otelsql", Module: "github.com/XSAM/otelsql",
		Pool:     "`cfg.Wrap = Trace(provider)` of the example, and `OpenConfig(cfg)`",
		Unit:     "nothing to do: a span's parent is that of the context",
		Nested:   "those of `s.DB()`, which are savepoints",
		Prepared: "traced too",
		Remarks:  "not `otelsql.OpenDB(connector)`: there are no units on that, and nothing runs in the background. A span is what was sent, so that each attempt of a unit has its own. A unit sends `BEGIN` (`pool_begin=explicit`), as with any `Wrap`",
	},
	{
		Name: "sqlc", Dir: "sqlc", Generated: "accounts/db.go",
		Pool:     "`queries.New(pool)`",
		Unit:     "`queries.New(s)`",
		Nested:   "`WithTx(tx)`, with a `tx` of `s.DB().BeginTx`: a savepoint",
		Prepared: "`emit_prepared_queries`: `queries.Prepare(ctx, pool)`, and in a unit again on `s.DB()`",
	},
	{
		Name: "sqlx", Dir: "sqlx", Module: "github.com/jmoiron/sqlx",
		Pool:     "`sqlx.NewDb(pool.DB, \"mysql\")`",
		Unit:     "the same on `s.DB()`",
		Nested:   "`BeginTxx`: a savepoint",
		Prepared: "`PrepareNamedContext`, `PreparexContext`: on the pool for as long as it is open, in a unit for as long as that runs",
	},
	{
		Name: "squirrel", Dir: "squirrel", Module: "github.com/Masterminds/squirrel",
		Pool:     "`squirrel.StatementBuilder.RunWith(pool.DB)`",
		Unit:     "the same on `s.DB()`",
		Nested:   "none of its own: `s.DB().BeginTx` is a savepoint",
		Prepared: "`RunWith(squirrel.NewStmtCache(pool.DB))`, and another on `s.DB()`",
	},
	{
		Name: "xorm", Dir: "xorm", Module: "xorm.io/xorm",
		Pool:     "`xorm.NewEngineWithDB(\"mysql\", dsn, core.FromDB(pool.DB))`",
		Unit:     "the same on `s.DB()`",
		Nested:   "`NewSession`, `Begin`: a savepoint",
		Prepared: "`Prepare()`",
		Remarks:  "keep the pool's engine: it closes the `*sql.DB` when it is garbage",
	},
}

// Tools are those that are tested, by name.
var Tools = []Tool{
	{
		Name: "golang-migrate", Dir: "migrate", Module: "github.com/golang-migrate/migrate/v4",
		Use:     "`mysql.WithConnection(ctx, conn, cfg)`, on a `pool.Conn`",
		Lock:    "its own, by `GET_LOCK`",
		Restart: "between two migrations the example's `pool.Retry` begins again. Inside one the version is left `dirty`, as without livepool: a person looks at what is there",
		Remarks: "a pool of its own, because it needs `multiStatements=true`, with which a value that is quoted badly can add a statement of its own; what is sent together livepool does not send again if a part of it may have run",
	},
	{
		Name: "goose", Dir: "goose", Module: "github.com/pressly/goose/v3",
		Use:     "`goose.NewProvider(goose.DialectMySQL, pool.DB, files)`",
		Lock:    "`namedLock` of the example, by `GET_LOCK`: goose has one for Postgres only",
		Restart: "the run fails, and the next goes on from there. Not by itself: a migration is noted after it has run, so that one of which a part has run is begun again",
		Remarks: "its transactions do not undo DDL, which commits. A migration in Go with `RunDB` uses another connection of the pool",
	},
}

// find returns a row of the table, whose module is the one that the test was built with.
func find(t *testing.T, name string) Framework {
	t.Helper()
	for _, f := range Frameworks {
		if f.Name == name {
			if f.Generated == "" {
				mustBeBuiltWith(t, f.Module)
			}
			return f
		}
	}
	t.Fatalf("storm.Frameworks has no row for %s", name)
	return Framework{}
}

// mustBeBuiltWith fails a test that is not built with the module of examples/go.mod.
func mustBeBuiltWith(t *testing.T, module string) {
	t.Helper()
	built, _ := debug.ReadBuildInfo()
	for _, m := range built.Deps {
		if m.Path == module && m.Version == version(t, "../go.mod", module) {
			return
		}
	}
	t.Fatalf("the test is not built with the %s of examples/go.mod", module)
}

// version is that of a module in a go.mod file.
func version(t *testing.T, goMod, module string) string {
	t.Helper()
	return readVersion(t, goMod, `(?m)^\s+`+regexp.QuoteMeta(module)+` (v\S+)`)
}

// readVersion is what the expression finds in a file.
func readVersion(t *testing.T, file, expr string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(expr).FindSubmatch(text)
	if found == nil {
		t.Fatalf("%s has nothing like %s", file, expr)
	}
	return string(found[1])
}
