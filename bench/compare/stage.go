package compare

import (
	"context"
	"database/sql"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"

	"github.com/livepool/livepool/bench/gauge"
	"github.com/livepool/livepool/internal/lab/proxy"
	"github.com/livepool/livepool/internal/lab/server"
)

const (
	points         = 1000 // rows of bench_point
	maxConnections = 3000 // of the server
)

// stage is the server that the contenders work on, and who they are.
type stage struct {
	*run
	server *server.Server
	admin  *sql.DB // straight to the server, and never an old connection
}

func newStage(r *run, s *server.Server) (*stage, error) {
	admin, err := sql.Open("mysql", s.DSN())
	if err != nil {
		return nil, err
	}
	admin.SetMaxIdleConns(-1)
	return &stage{run: r, server: s, admin: admin}, nil
}

// title names the server.
func (s *stage) title() string {
	version, _, _ := strings.Cut(s.server.Version(), "-")
	return s.server.Kind().Product() + " " + version
}

// lane is a contender at work: in a database of its own and, where something is to
// happen to its connections, behind a proxy of its own.
type lane struct {
	entry
	contender
	database string
	proxy    *proxy.Proxy // nil: it works on the server directly
	missing  string       // why it does not take part

	mu  sync.Mutex // guards what follows
	ops []answer   // what its jobs were told
}

// tell keeps what a job was told.
func (l *lane) tell(a answer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ops = append(l.ops, a)
}

func (l *lane) told() []answer {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.ops)
}

// open opens the contenders, each on a pool of that size.
func (s *stage) open(ctx context.Context, proxied bool, size int) (lanes []*lane, err error) {
	for _, e := range s.entries {
		l := &lane{entry: e}
		if l.database, err = s.newDatabase(ctx); err == nil {
			err = s.openLane(ctx, l, proxied, size)
		}
		lanes = append(lanes, l)
		if err != nil {
			closeLanes(lanes)
			return nil, fmt.Errorf("%s: %w", e.name, err)
		}
	}
	return lanes, nil
}

// openLane opens one. A process that does not start is left out, with its reason.
func (s *stage) openLane(ctx context.Context, l *lane, proxied bool, size int) (err error) {
	addr := s.server.Addr()
	if proxied {
		if l.proxy, err = proxy.New(addr); err != nil {
			return err
		}
		addr = l.proxy.Addr()
	}
	t := target{user: server.User, password: server.Password, database: l.database, size: size}
	if t.host, t.port, err = net.SplitHostPort(addr); err != nil {
		return err
	}
	c, err := l.entry.open(ctx, t)
	if err != nil && !l.goes && ctx.Err() == nil {
		l.missing = err.Error()
		return nil
	}
	if err != nil {
		return err
	}
	l.contender = c
	s.seen(l)
	return nil
}

// alone opens one contender after the other, has f make its row, and closes it.
func (s *stage) alone(ctx context.Context, title string, proxied bool, size int, f func(*lane) ([]cell, error)) (rows []row, err error) {
	for _, e := range s.entries {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		s.enter("%s: %s: %s", s.title(), title, e.name)
		l := &lane{entry: e}
		if l.database, err = s.newDatabase(ctx); err != nil {
			return nil, err
		}
		err := s.openLane(ctx, l, proxied, size)
		var cells []cell
		if err == nil && l.missing == "" {
			cells, err = f(l)
		}
		closeLanes([]*lane{l})
		if err != nil {
			l.missing = err.Error()
		}
		rows = append(rows, row{Contender: e.name, Missing: l.missing, Cells: cells, lane: e})
	}
	return rows, nil
}

// closeLanes closes the proxies first: what hangs behind them ends then.
func closeLanes(lanes []*lane) {
	var wg sync.WaitGroup
	for _, l := range lanes {
		wg.Go(func() {
			if l.proxy != nil {
				l.proxy.Close()
			}
			if l.contender != nil {
				l.Close()
			}
		})
	}
	wg.Wait()
}

// each has all lanes that take part do the same at the same time. Whoever fails takes no
// part any more.
func each(lanes []*lane, f func(*lane) error) {
	var wg sync.WaitGroup
	for _, l := range present(lanes) {
		wg.Go(func() {
			if err := f(l); err != nil {
				l.missing = err.Error()
			}
		})
	}
	wg.Wait()
}

func present(lanes []*lane) (those []*lane) {
	for _, l := range lanes {
		if l.missing == "" {
			those = append(those, l)
		}
	}
	return those
}

// newDatabase makes a database with the tables of the protocol. Nothing in bench_job is
// unique: what is applied twice must show.
func (s *stage) newDatabase(ctx context.Context) (string, error) {
	s.databases++
	name := fmt.Sprintf("bench_%d", s.databases)
	var values []string
	for id := range points {
		values = append(values, fmt.Sprintf("(%d, 'value %[1]d')", id+1))
	}
	for _, statement := range []string{
		"CREATE DATABASE " + name,
		"CREATE TABLE " + name + ".bench_point (id INT PRIMARY KEY, v VARCHAR(100) NOT NULL)",
		"INSERT INTO " + name + ".bench_point VALUES " + strings.Join(values, ", "),
		"CREATE TABLE " + name + ".bench_job (id BIGINT NOT NULL, KEY (id))",
		"CREATE TABLE " + name + ".bench_lock (id INT PRIMARY KEY, v BIGINT NOT NULL)",
		"INSERT INTO " + name + ".bench_lock VALUES (1, 0)",
	} {
		if _, err := s.admin.ExecContext(ctx, statement); err != nil {
			return "", fmt.Errorf("%.60s: %w", statement, err)
		}
	}
	return name, nil
}

// rows are the jobs that a lane has left in its table, and how often.
func (s *stage) rows(ctx context.Context, l *lane) (map[int64]int, error) {
	return gauge.Counts[int64](ctx, s.admin, "SELECT id, COUNT(*) FROM "+l.database+".bench_job GROUP BY id")
}
