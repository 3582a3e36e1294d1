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
	Name     string
	Dir      string // of its example
	Module   string // whose version was tested
	Pool     string // how it is opened on the pool
	Unit     string // how one has it in a unit of work
	Nested   string // its own transactions, in a unit
	Nests    bool   // they may be inside each other; the test holds it to that
	Prepared string // its prepared statements
	Remarks  string
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
		Name: "sqlx", Dir: "sqlx", Module: "github.com/jmoiron/sqlx",
		Pool:     "`sqlx.NewDb(pool.DB, \"mysql\")`",
		Unit:     "the same on `s.DB()`",
		Nested:   "`BeginTxx`: a savepoint",
		Prepared: "`PrepareNamedContext`, `PreparexContext`: on the pool for as long as it is open, in a unit for as long as that runs",
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

// find returns a row of the table, whose module is the one that the test was built with.
func find(t *testing.T, name string) Framework {
	t.Helper()
	for _, f := range Frameworks {
		if f.Name != name {
			continue
		}
		built, _ := debug.ReadBuildInfo()
		for _, m := range built.Deps {
			if m.Path == f.Module && m.Version == version(t, "../go.mod", f.Module) {
				return f
			}
		}
		t.Fatalf("the test of %s is not built with the %s of examples/go.mod", name, f.Module)
	}
	t.Fatalf("storm.Frameworks has no row for %s", name)
	return Framework{}
}

// version is that of a module in a go.mod file.
func version(t *testing.T, goMod, module string) string {
	t.Helper()
	text, err := os.ReadFile(goMod)
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`(?m)^\s+` + regexp.QuoteMeta(module) + ` (v\S+)`).FindSubmatch(text)
	if found == nil {
		t.Fatalf("%s does not require %s", goMod, module)
	}
	return string(found[1])
}
