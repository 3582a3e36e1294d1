// ground.go is what the soak stands on: the server, its users and tables, and a
// way to it that can fail. It injects nothing and judges nothing.

package soak

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/livepool/livepool/internal/proxy"
	"github.com/livepool/livepool/internal/server"
)

const (
	naiveUser, naivePassword = "naive", "naive-pw"
	crowdUser, crowdPassword = "crowd", "crowd-pw" // takes the connections away from the others

	waitTimeout    = 28800 // the server's defaults, which the faults change
	maxConnections = 200
)

// ground is the server and the ways to it.
type ground struct {
	server *server.Server
	title  string
	admin  *sql.DB // root's, straight to the server
	log    *slog.Logger
	lanes  []*lane
	closed bool
}

func newGround(ctx context.Context, set settings, log *slog.Logger) (*ground, error) {
	s, err := startServer(ctx, set.server)
	if err != nil {
		return nil, err
	}
	g := &ground{server: s, title: fmt.Sprintf("%s %s", s.Kind(), s.Version()), log: log}
	if g.admin, err = openAdmin(s); err == nil {
		err = g.furnish(ctx)
	}
	if err != nil {
		g.close()
		return nil, err
	}
	return g, nil
}

// startServer starts a server whose lock waits end while a unit still has time
// to be run again.
func startServer(ctx context.Context, kind string) (*server.Server, error) {
	kinds := []server.Kind{server.Kind(kind)}
	switch kind {
	case "mariadb", "mysql":
	case "auto":
		kinds = server.Kinds()
	default:
		return nil, fmt.Errorf("-server %s: takes mariadb, mysql or auto", kind)
	}
	var errs []error
	for _, k := range kinds {
		s, err := server.Start(ctx, k, server.Options{Args: []string{"--innodb-lock-wait-timeout=1"}})
		if err == nil || !errors.Is(err, server.ErrUnavailable) {
			return s, err
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// openAdmin opens a pool that keeps its connections, so that it has some when
// the server gives out no more, and that no change of wait_timeout concerns.
func openAdmin(s *server.Server) (*sql.DB, error) {
	cfg := mysql.NewConfig()
	cfg.User, cfg.Net, cfg.Addr, cfg.DBName = "root", "unix", s.Socket(), server.Database
	cfg.InterpolateParams = true
	cfg.Params = map[string]string{"wait_timeout": fmt.Sprint(waitTimeout)}
	cfg.Logger = &mysql.NopLogger{}
	connector, err := mysql.NewConnector(cfg)
	if err != nil {
		return nil, err
	}
	db := sql.OpenDB(connector)
	db.SetMaxIdleConns(8)
	return db, nil
}

// furnish makes the users and tables of the nemesis.
func (g *ground) furnish(ctx context.Context) error {
	var ids []string
	for id := range 100 {
		ids = append(ids, fmt.Sprintf("(%d)", id))
	}
	return g.exec(ctx,
		"CREATE USER '"+naiveUser+"'@'%' IDENTIFIED BY '"+naivePassword+"'",
		"GRANT ALL PRIVILEGES ON "+server.Database+".* TO '"+naiveUser+"'@'%'",
		"CREATE USER '"+crowdUser+"'@'%' IDENTIFIED BY '"+crowdPassword+"'",
		"CREATE TABLE "+ballast[0]+" (id INT PRIMARY KEY)",
		"CREATE TABLE "+ballast[1]+" (id INT PRIMARY KEY)",
		"INSERT INTO "+ballast[0]+" VALUES "+strings.Join(ids, ", "),
		"INSERT INTO "+ballast[1]+" SELECT id FROM "+ballast[0])
}

// ballast is what makes a transaction of the nemesis the heavier one, so that
// the server ends the other in a deadlock.
var ballast = [2]string{"soak_ballast_0", "soak_ballast_1"}

// exec executes statements as root.
func (g *ground) exec(ctx context.Context, statements ...string) error {
	for _, s := range statements {
		if _, err := g.admin.ExecContext(ctx, s); err != nil {
			return fmt.Errorf("%.60s: %w", s, err)
		}
	}
	return nil
}

// close ends everything. It may be called more than once.
func (g *ground) close() error {
	if g.closed {
		return nil
	}
	g.closed = true
	for _, l := range g.lanes {
		l.near.Close()
		l.far.Close()
	}
	if g.admin != nil {
		g.admin.Close()
	}
	return g.server.Close()
}

// lane is one pool's way to the server and its tables there. It leads through
// two proxies: what the far one has swallowed stays so until the end, while the
// near one fails and heals.
type lane struct {
	name           string
	user, password string
	near, far      *proxy.Proxy
	tables         tables
	// forGood: what vanishes behind the far proxy stays there. A pool that does
	// not clear away what it leaves on the server would soon have filled it.
	forGood bool
}

func (g *ground) addLane(name, user, password string, forGood bool) (*lane, error) {
	l := &lane{name: name, user: user, password: password, tables: newTables(name), forGood: forGood}
	var err error
	if l.far, err = proxy.New(g.server.Addr()); err != nil {
		return nil, err
	}
	if l.near, err = proxy.New(l.far.Addr()); err != nil {
		l.far.Close()
		return nil, err
	}
	g.lanes = append(g.lanes, l)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return l, g.exec(ctx, l.tables.create()...)
}

// mysql is for a driver that goes this way.
func (l *lane) mysql() *mysql.Config { return clientOf(l.near.Addr(), l.user, l.password) }

func clientOf(addr, user, password string) *mysql.Config {
	cfg := mysql.NewConfig()
	cfg.User, cfg.Passwd, cfg.Net, cfg.Addr, cfg.DBName = user, password, "tcp", addr, server.Database
	return cfg
}

// heal ends whatever the proxies do.
func (l *lane) heal() error {
	l.near.Heal()
	l.far.Heal()
	return errors.Join(l.near.Reopen(), l.far.Reopen())
}

const (
	accounts       = 40
	openingBalance = 100_000
	shards         = 8 // of the counter, lest all units wait for one row
)

// What a row of the ledger is of.
const (
	partUnit   = iota // the unit itself
	partInner         // a unit inside it that succeeded
	partUndone        // one that failed: such a row must never be seen
)

// tables are one lane's own. The ledger's unit is not unique: what is applied
// twice must show.
type tables struct{ account, counter, ledger string }

func newTables(lane string) tables {
	prefix := "soak_" + lane + "_"
	return tables{prefix + "account", prefix + "counter", prefix + "ledger"}
}

func (t tables) create() []string {
	var balances, counters []string
	for id := range accounts {
		balances = append(balances, fmt.Sprintf("(%d, %d)", id, openingBalance))
	}
	for id := range shards {
		counters = append(counters, fmt.Sprintf("(%d, 0)", id))
	}
	return []string{
		"CREATE TABLE " + t.account + " (id INT PRIMARY KEY, balance BIGINT NOT NULL)",
		"CREATE TABLE " + t.counter + " (id INT PRIMARY KEY, n BIGINT NOT NULL)",
		"CREATE TABLE " + t.ledger + " (id BIGINT AUTO_INCREMENT PRIMARY KEY, unit BIGINT NOT NULL, delivery INT NOT NULL, attempt INT NOT NULL," +
			" part INT NOT NULL, src INT NOT NULL, dst INT NOT NULL, amount INT NOT NULL, KEY (unit))",
		"INSERT INTO " + t.account + " VALUES " + strings.Join(balances, ", "),
		"INSERT INTO " + t.counter + " VALUES " + strings.Join(counters, ", "),
	}
}

// books are what the tables of a lane say.
type books struct {
	rows     []row
	counters [shards]int64
	balances [accounts]int64
}

// row is a row of the ledger.
type row struct {
	unit              int64
	delivery, attempt int
	part              int
	src, dst, amount  int
}

// read reads the books, at one moment.
func (g *ground) read(t tables) (*books, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	tx, err := g.admin.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelRepeatableRead})
	if err != nil {
		return nil, err
	}
	defer tx.Rollback()
	b := &books{}
	if b.rows, err = readRows(ctx, tx, t, ""); err != nil {
		return nil, err
	}
	if err := readNumbers(ctx, tx, "SELECT id, n FROM "+t.counter, b.counters[:]); err != nil {
		return nil, err
	}
	return b, readNumbers(ctx, tx, "SELECT id, balance FROM "+t.account, b.balances[:])
}

// asker is a pool or a transaction.
type asker interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

func readRows(ctx context.Context, db asker, t tables, where string) (all []row, err error) {
	rows, err := db.QueryContext(ctx, "SELECT unit, delivery, attempt, part, src, dst, amount FROM "+t.ledger+" "+where)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var r row
		if err := rows.Scan(&r.unit, &r.delivery, &r.attempt, &r.part, &r.src, &r.dst, &r.amount); err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return all, rows.Err()
}

// readNumbers reads pairs of an index and its number.
func readNumbers(ctx context.Context, db asker, query string, into []int64) error {
	rows, err := db.QueryContext(ctx, query)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var id int
		var n int64
		if err := rows.Scan(&id, &n); err != nil {
			return err
		}
		into[id] = n
	}
	return rows.Err()
}
