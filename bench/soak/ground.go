// ground.go is what the soak stands on: the servers and their users. The ways to
// them are lane.go's, the tables books.go's. It injects nothing and judges nothing.

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

	"github.com/go-sql-driver/mysql"

	"github.com/livepool/livepool/internal/lab/server"
)

const (
	naiveUser, naivePassword = "naive", "naive-pw"
	crowdUser, crowdPassword = "crowd", "crowd-pw" // takes the connections away from the others

	waitTimeout      = 28800 // the server's defaults, which the faults change
	shortWaitTimeout = 3     // of the second server of a pair
	maxConnections   = 200
)

// shape is how the servers belong together.
type shape int

const (
	alone       shape = 1 << iota
	aPair             // behind one address, which leads to the primary
	aCluster          // behind one address, which leads to all nodes in turn
	hostPair          // semi-synchronous; the pool has both addresses
	hostCluster       // the pool has the addresses of all nodes

	pairs    = aPair | hostPair
	clusters = aCluster | hostCluster
	hosts    = hostPair | hostCluster
	anyShape = alone | pairs | clusters
)

// is says whether it is one of several.
func (s shape) is(these shape) bool { return s&these != 0 }

// sites are what -server takes. The first kind that can be had is taken.
var sites = map[string]struct {
	shape shape
	kinds []server.Kind
}{
	"auto":                {alone, server.Kinds()},
	"mariadb":             {alone, []server.Kind{server.MariaDB}},
	"mariadb-11.8":        {alone, []server.Kind{server.MariaDB118}},
	"mysql":               {alone, []server.Kind{server.MySQL}},
	"pair":                {aPair, []server.Kind{server.MariaDB}},
	"pair-balanced-mysql": {aPair, []server.Kind{server.MySQL}},
	"galera":              {aCluster, []server.Kind{server.MariaDB}},
	"pair-mariadb":        {hostPair, []server.Kind{server.MariaDB}},
	"pair-mysql":          {hostPair, []server.Kind{server.MySQL}},
	"galera-hosts":        {hostCluster, []server.Kind{server.MariaDB}},
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

	waitTimeout int // its own
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
// transaction of a connection has begun with a SELECT. The two of a pair differ in
// what a pool may know of its server.
func (g *ground) startServers(ctx context.Context, kind server.Kind) (servers []*server.Server, err error) {
	o := server.Options{Args: []string{"--innodb-lock-wait-timeout=1", fmt.Sprint("--max-allowed-packet=", largestPacket)}}
	switch {
	case g.shape.is(pairs):
		o.SemiSync = g.shape == hostPair
		o.Args = append(o.Args, map[bool]string{false: "--slave", true: "--replica"}[kind == server.MySQL]+"-transaction-retries=1000000")
		o.Second = []string{"--innodb-rollback-on-timeout=ON", fmt.Sprint("--wait-timeout=", shortWaitTimeout)}
		if g.pair, err = server.StartPair(ctx, kind, o); err == nil {
			servers = []*server.Server{g.pair.Primary(), g.pair.Replica()}
		}
	case g.shape.is(clusters):
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
	g.title = map[shape]string{aPair: "primary and replica, ", aCluster: "Galera cluster, ",
		hostPair: "semi-synchronous primary and replica as two hosts, ", hostCluster: "Galera cluster as three hosts, "}[g.shape] +
		fmt.Sprintf("%s %s", servers[0].Kind(), servers[0].Version())
	params := map[string]string{"wait_timeout": fmt.Sprint(waitTimeout)}
	if g.shape.is(clusters) {
		params["wsrep_sync_wait"] = "1"
	}
	var errs []error
	for i, s := range servers {
		admin, err := openAdmin(s, params)
		errs = append(errs, err)
		n := &node{Server: s, name: fmt.Sprint("node ", i), admin: admin, waitTimeout: waitTimeout}
		if g.shape.is(pairs) && i == 1 {
			n.waitTimeout = shortWaitTimeout
		}
		g.nodes = append(g.nodes, n)
	}
	return errors.Join(errs...)
}

// truth is the node whose rows are right when all is well: the primary, or any.
func (g *ground) truth() *node {
	for _, n := range g.nodes {
		if g.shape.is(pairs) && n.Server == g.pair.Primary() {
			return n
		}
	}
	return g.nodes[0]
}

// witness is a node that may be asked at any time.
func (g *ground) witness() *node {
	if g.shape.is(clusters) {
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
		"CREATE DATABASE "+otherSchema,
		"GRANT ALL PRIVILEGES ON "+otherSchema+".* TO '"+server.AppUser+"'@'%'",
		"CREATE USER '"+crowdUser+"'@'%' IDENTIFIED BY '"+crowdPassword+"'",
		"CREATE TABLE "+ballast[0]+" (id INT PRIMARY KEY)",
		"CREATE TABLE "+ballast[1]+" (id INT PRIMARY KEY)",
		"INSERT INTO "+ballast[0]+" VALUES "+strings.Join(ids, ", "),
		"INSERT INTO "+ballast[1]+" SELECT id FROM "+ballast[0])
}

// settle waits until each node has what the others have.
func (g *ground) settle(ctx context.Context) error {
	switch {
	case g.shape.is(pairs):
		return g.pair.CatchUp(ctx)
	case g.shape.is(clusters):
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
		l.close()
	}
	var errs []error
	for _, n := range g.nodes {
		n.admin.Close()
		errs = append(errs, n.Close())
	}
	return errors.Join(errs...)
}
