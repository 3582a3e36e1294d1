// ground.go is what the soak stands on: the servers, their users and tables, and a
// way to them that can fail. It injects nothing and judges nothing.

package soak

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
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

// shape is how the servers belong together.
type shape int

const (
	alone shape = 1 << iota
	aPair
	aCluster
	anyShape = alone | aPair | aCluster
)

// sites are what -server takes. The first kind that can be had is taken.
var sites = map[string]struct {
	shape shape
	kinds []server.Kind
}{
	"auto":         {alone, server.Kinds()},
	"mariadb":      {alone, []server.Kind{server.MariaDB}},
	"mariadb-11.8": {alone, []server.Kind{server.MariaDB118}},
	"mysql":        {alone, []server.Kind{server.MySQL}},
	"pair":         {aPair, []server.Kind{server.MariaDB}},
	"pair-mysql":   {aPair, []server.Kind{server.MySQL}},
	"galera":       {aCluster, []server.Kind{server.MariaDB}},
}

func siteNames() string { return strings.Join(slices.Sorted(maps.Keys(sites)), ", ") }

// ground is the servers and the ways to them.
type ground struct {
	shape   shape
	nodes   []*node
	pair    *server.Pair   // nil unless the nodes are one
	cluster *server.Galera // nil unless the nodes are one
	title   string
	log     *slog.Logger
	lanes   []*lane
	closed  bool
}

// node is one server.
type node struct {
	*server.Server
	name  string
	admin *sql.DB // root's, straight to the server
}

func newGround(ctx context.Context, set settings, log *slog.Logger) (*ground, error) {
	g := &ground{shape: sites[set.server].shape, log: log}
	err := g.start(ctx, sites[set.server].kinds)
	if err == nil {
		err = g.furnish(ctx)
	}
	if err == nil {
		err = g.settle(ctx)
	}
	if err != nil {
		g.close()
		return nil, err
	}
	return g, nil
}

// start starts servers of the first kind that can be had.
func (g *ground) start(ctx context.Context, kinds []server.Kind) error {
	var errs []error
	for _, k := range kinds {
		servers, err := g.startServers(ctx, k)
		if err == nil {
			return g.adopt(servers)
		}
		if !errors.Is(err, server.ErrUnavailable) {
			return err
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// startServers starts servers whose lock waits end while a unit still has time
// to be run again. A replica waits for locks as long as they are held: it would
// give up for good. A cluster writes a binary log, without which MariaDB 10.11
// sends to the other nodes what a ROLLBACK TO SAVEPOINT has undone, if the first
// transaction of a connection has begun with a SELECT.
func (g *ground) startServers(ctx context.Context, kind server.Kind) (servers []*server.Server, err error) {
	o := server.Options{Args: []string{"--innodb-lock-wait-timeout=1"}}
	switch g.shape {
	case aPair:
		o.Args = append(o.Args, map[bool]string{false: "--slave", true: "--replica"}[kind == server.MySQL]+"-transaction-retries=1000000")
		if g.pair, err = server.StartPair(ctx, kind, o); err == nil {
			servers = []*server.Server{g.pair.Primary(), g.pair.Replica()}
		}
	case aCluster:
		o.Args = append(o.Args, "--log-bin=binlog", "--log-slave-updates=ON")
		if g.cluster, err = server.StartGalera(ctx, 3, o); err == nil {
			servers = g.cluster.Nodes()
		}
	default:
		var s *server.Server
		if s, err = server.Start(ctx, kind, o); err == nil {
			servers = []*server.Server{s}
		}
	}
	return servers, err
}

// adopt makes nodes of the servers. Root's reads wait until the node has what the
// others have committed; the units have to do with what a node does by itself.
func (g *ground) adopt(servers []*server.Server) error {
	g.title = map[shape]string{aPair: "primary and replica, ", aCluster: "Galera cluster, "}[g.shape] +
		fmt.Sprintf("%s %s", servers[0].Kind(), servers[0].Version())
	params := map[string]string{"wait_timeout": fmt.Sprint(waitTimeout)}
	if g.shape == aCluster {
		params["wsrep_sync_wait"] = "1"
	}
	var errs []error
	for i, s := range servers {
		admin, err := openAdmin(s, params)
		errs = append(errs, err)
		g.nodes = append(g.nodes, &node{Server: s, name: fmt.Sprint("node ", i), admin: admin})
	}
	return errors.Join(errs...)
}

// truth is the node whose rows are right when all is well: the primary, or any.
func (g *ground) truth() *node {
	for _, n := range g.nodes {
		if g.shape == aPair && n.Server == g.pair.Primary() {
			return n
		}
	}
	return g.nodes[0]
}

// witness is a node that may be asked at any time.
func (g *ground) witness() *node {
	if g.shape == aCluster {
		return g.nodes[rand.IntN(len(g.nodes))] // they must agree
	}
	return g.truth()
}

// openAdmin opens a pool that keeps its connections, so that it has some when
// the server gives out no more, and that no change of wait_timeout concerns.
func openAdmin(s *server.Server, params map[string]string) (*sql.DB, error) {
	cfg := mysql.NewConfig()
	cfg.User, cfg.Net, cfg.Addr, cfg.DBName = "root", "unix", s.Socket(), server.Database
	cfg.InterpolateParams = true
	cfg.Params = params
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

// settle waits until each node has what the others have.
func (g *ground) settle(ctx context.Context) error {
	switch g.shape {
	case aPair:
		return g.pair.CatchUp(ctx)
	case aCluster:
		if err := g.cluster.AwaitSynced(ctx); err != nil {
			return err
		}
		for _, n := range g.nodes { // in sync is also who has still to apply what it has received
			if _, err := n.list(ctx, "SELECT COUNT(*) FROM "+ballast[0]); err != nil {
				return err
			}
		}
	}
	return nil
}

// ballast is what makes a transaction of the nemesis the heavier one, so that
// the server ends the other in a deadlock.
var ballast = [2]string{"soak_ballast_0", "soak_ballast_1"}

// exec executes statements as root, for all nodes.
func (g *ground) exec(ctx context.Context, statements ...string) error {
	return g.truth().exec(ctx, statements...)
}

func (n *node) exec(ctx context.Context, statements ...string) error {
	for _, s := range statements {
		if _, err := n.admin.ExecContext(ctx, s); err != nil {
			return fmt.Errorf("%.60s: %w", s, err)
		}
	}
	return nil
}

// list asks for one column.
func (n *node) list(ctx context.Context, query string) (all []string, err error) {
	rows, err := n.admin.QueryContext(ctx, query)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var s sql.NullString
		if err := rows.Scan(&s); err != nil {
			return nil, err
		}
		all = append(all, s.String)
	}
	return all, rows.Err()
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
	var errs []error
	for _, n := range g.nodes {
		n.admin.Close()
		errs = append(errs, n.Close())
	}
	return errors.Join(errs...)
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
	if l.far, err = proxy.New(g.nodes[0].Addr()); err != nil {
		return nil, err
	}
	if l.near, err = proxy.New(l.far.Addr()); err != nil {
		l.far.Close()
		return nil, err
	}
	g.lanes = append(g.lanes, l)
	g.lead()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return l, errors.Join(g.exec(ctx, l.tables.create()...), g.settle(ctx))
}

// lead has new connections go to those that take writes: to the primary, or to
// all nodes in turn. Whether these can take them the balancer does not ask.
func (g *ground) lead() {
	var addrs []string
	for _, n := range g.nodes {
		if g.shape != aPair || n == g.truth() {
			addrs = append(addrs, n.Addr())
		}
	}
	for _, l := range g.lanes {
		l.far.SetUpstreams(addrs...)
	}
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

// read reads the books, which are the same on all nodes when all is over.
func (g *ground) read(t tables) (b *books, vs []violation, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := g.settle(ctx); err != nil {
		return nil, nil, err
	}
	if b, err = g.truth().read(ctx, t); err != nil {
		return nil, nil, err
	}
	for _, n := range g.nodes {
		other, err := n.read(ctx, t)
		if err != nil {
			return nil, nil, err
		}
		if text := b.differs(other); text != "" {
			vs = append(vs, violation{Rule: ruleSame, Text: fmt.Sprintf("%s and %s: %s", g.truth().name, n.name, text)})
		}
	}
	return b, vs, nil
}

// differs says in what two books do, "" if in nothing.
func (b *books) differs(o *books) string {
	for i := range max(len(b.rows), len(o.rows)) {
		switch {
		case i >= len(b.rows), i >= len(o.rows):
			return fmt.Sprintf("%d and %d rows in the ledger", len(b.rows), len(o.rows))
		case b.rows[i] != o.rows[i]:
			return fmt.Sprintf("row %d of the ledger: %+v and %+v", i, b.rows[i], o.rows[i])
		}
	}
	if b.counters != o.counters || b.balances != o.balances {
		return fmt.Sprintf("counters %v and %v, balances %v and %v", b.counters, o.counters, b.balances, o.balances)
	}
	return ""
}

// read reads the books of one node, at one moment.
func (n *node) read(ctx context.Context, t tables) (*books, error) {
	tx, err := n.admin.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelRepeatableRead})
	if err != nil {
		return nil, err
	}
	defer tx.Rollback()
	b := &books{}
	if b.rows, err = readRows(ctx, tx, t, "ORDER BY id"); err != nil {
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
