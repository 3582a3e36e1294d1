// upsets.go is the faults of one server: connections that it ends, refuses or has
// none left of, its death, and settings that change.

package soak

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/livepool/livepool/internal/clock"
	"github.com/livepool/livepool/internal/lab/server"
)

// adminPatience bounds what the nemesis asks of a server that may be frozen.
const adminPatience = 3 * time.Second

// kill ends some of the pools' connections, or what they do.
func kill(how string) strikeFunc {
	return func(ctx context.Context, n *nemesis, f fault) (string, error) {
		ctx, cancel := context.WithTimeout(ctx, adminPatience)
		defer cancel()
		struck, victim := 0, n.victim(f)
		for i, l := range n.ground.lanes {
			k, err := n.killSome(ctx, how, victim, l, f)
			if i == 0 {
				struck = k
			}
			if err != nil {
				return "", err
			}
		}
		if struck == 0 {
			return "", nil
		}
		return how, nil
	}
}

// killSome kills a share of a lane's connections to a node, one at least.
func (n *nemesis) killSome(ctx context.Context, how string, victim *node, l *lane, f fault) (killed int, err error) {
	ids, err := victim.list(ctx, "SELECT id FROM information_schema.processlist WHERE user = '"+l.user+"'")
	if err != nil {
		return 0, err
	}
	rng := rand.New(rand.NewPCG(uint64(f.number), uint64(f.rolls[1]*(1<<53))))
	rng.Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
	share := max(1, int(f.rolls[0]*f.rolls[0]*float64(len(ids))))
	for _, id := range ids[:min(share, len(ids))] {
		hit, err := victim.kill(ctx, how, id)
		if err != nil {
			return killed, err
		}
		if hit {
			killed++
		}
	}
	return killed, nil
}

// kill kills one connection, if it is there.
func (n *node) kill(ctx context.Context, how, id string) (hit bool, err error) {
	const noSuchThread = 1094
	var my *mysql.MySQLError
	err = n.exec(ctx, how+" "+id)
	if errors.As(err, &my) && my.Number == noSuchThread {
		return false, nil
	}
	return err == nil, err
}

func crash(ctx context.Context, n *nemesis, f fault) (string, error) {
	victim := n.victim(f)
	if err := victim.Kill(); err != nil {
		return "", err
	}
	clock.Wait(ctx, nil, f.hold)
	return "SIGKILL and restart", n.heal("starting the server", func(context.Context) error { return victim.Start() })
}

func freeze(ctx context.Context, n *nemesis, f fault) (string, error) {
	victim := n.victim(f)
	if err := victim.Pause(); err != nil {
		return "", err
	}
	clock.Wait(ctx, nil, f.hold)
	return "SIGSTOP and SIGCONT", victim.Resume()
}

// shortenWaitTimeout has the server close the pool's connections while they are
// idle, for which it has the workers rest.
func shortenWaitTimeout(ctx context.Context, n *nemesis, f fault) (string, error) {
	if err := n.set(ctx, "wait_timeout", 1); err != nil {
		return "", err
	}
	n.run.pool.Recycle()
	clock.Wait(ctx, nil, 300*time.Millisecond) // for new connections to be opened
	n.run.work.lull(f.hold)
	clock.Wait(ctx, nil, f.hold)
	err := n.heal("wait_timeout", n.resetWaitTimeouts)
	if f.of(0, 2) == 0 {
		n.run.pool.Recycle()
	}
	return "wait_timeout of 1s", err
}

// set sets a variable of all servers.
func (n *nemesis) set(ctx context.Context, variable string, value int) error {
	ctx, cancel := context.WithTimeout(ctx, adminPatience)
	defer cancel()
	var errs []error
	for _, v := range n.ground.nodes {
		errs = append(errs, v.exec(ctx, fmt.Sprintf("SET GLOBAL %s = %d", variable, value)))
	}
	return errors.Join(errs...)
}

// readOnlyVariables are what makes the server refuse writes, and what undoes it:
// each of them in MySQL sets the other.
func (n *nemesis) readOnlyVariables() (on, off string) {
	if n.ground.nodes[0].Kind() == server.MySQL {
		return "super_read_only", "read_only"
	}
	return "read_only", "read_only"
}

// demand has root ask for what nobody else can have then, hold it while others
// meet it, and undo it. A
// server that waits for it waits on when nobody is left who wants it: so the
// connection is ended there, lest it is granted after the healing.
func (n *nemesis) demand(ctx context.Context, f fault, statement string, meet func(), undo func(ctx context.Context) error) (granted bool, err error) {
	victim := n.ground.truth()
	conn, err := victim.admin.Conn(ctx)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	defer conn.Raw(func(any) error { return driver.ErrBadConn })
	var id int64
	if err := conn.QueryRowContext(ctx, "SELECT CONNECTION_ID()").Scan(&id); err != nil {
		return false, err
	}
	asking, cancel := context.WithTimeout(ctx, adminPatience)
	defer cancel()
	_, refused := conn.ExecContext(asking, statement)
	if refused == nil {
		meet()
		clock.Wait(ctx, nil, f.hold)
	}
	return refused == nil, errors.Join(refused, n.heal("undoing "+statement, func(ctx context.Context) error {
		if err := victim.end(ctx, id); err != nil {
			return err
		}
		return undo(ctx)
	}))
}

// forbidWrites makes the server read-only.
func forbidWrites(ctx context.Context, n *nemesis, f fault) (label string, err error) {
	on, off := n.readOnlyVariables()
	granted, err := n.demand(ctx, f, "SET GLOBAL "+on+" = 1", func() {}, func(ctx context.Context) error { return n.set(ctx, off, 0) })
	return f.labelIf(granted, "read-only", time.Second), err
}

// labelIf says also whether it was for long.
func (f fault) labelIf(struck bool, label string, long time.Duration) string {
	if !struck {
		return ""
	}
	if f.hold > long {
		label += fmt.Sprintf(", for more than %s", long)
	}
	return label
}

// end kills a connection of root's, if it is there, and fails as long as it is.
func (n *node) end(ctx context.Context, id int64) error {
	if _, err := n.kill(ctx, "KILL", fmt.Sprint(id)); err != nil {
		return err
	}
	left, err := n.list(ctx, fmt.Sprintf("SELECT id FROM information_schema.processlist WHERE id = %d", id))
	if err == nil && left != nil {
		err = fmt.Errorf("connection %d is still there", id)
	}
	return err
}

// resetVariables sets all that the faults change to what it was.
func (n *nemesis) resetVariables(ctx context.Context) error {
	_, off := n.readOnlyVariables()
	if err := n.ground.exec(ctx, "SET GLOBAL "+off+" = 0"); err != nil { // a replica stays what it is
		return err
	}
	return errors.Join(n.resetWaitTimeouts(ctx), n.set(ctx, "max_connections", maxConnections))
}

func (n *nemesis) resetWaitTimeouts(ctx context.Context) error {
	var errs []error
	for _, v := range n.ground.nodes {
		errs = append(errs, v.exec(ctx, fmt.Sprint("SET GLOBAL wait_timeout = ", v.waitTimeout)))
	}
	return errors.Join(errs...)
}

// exhaust takes all connections that the server gives, and ends some of the
// pool's, which is then refused others.
func exhaust(ctx context.Context, n *nemesis, f fault) (string, error) {
	if err := n.set(ctx, "max_connections", 10); err != nil { // MariaDB's least
		return "", err
	}
	victim := n.victim(f)
	crowd := victim.crowd(ctx)
	defer func() {
		for _, c := range crowd {
			c.Close()
		}
	}()
	for _, l := range n.ground.lanes {
		killing, cancel := context.WithTimeout(ctx, adminPatience)
		n.killSome(killing, "KILL", victim, l, f)
		cancel()
	}
	clock.Wait(ctx, nil, f.hold)
	return f.labelIf(true, "max_connections used up", 1200*time.Millisecond), n.heal("max_connections", func(ctx context.Context) error { return n.set(ctx, "max_connections", maxConnections) })
}

// crowd opens connections until the server has no more, but for those that it
// has already.
func (n *node) crowd(ctx context.Context) (all []io.Closer) {
	cfg := clientOf(n.Addr(), crowdUser, crowdPassword)
	cfg.Timeout, cfg.ReadTimeout, cfg.Logger = adminPatience, adminPatience, &mysql.NopLogger{}
	connector, err := mysql.NewConnector(cfg)
	if err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, adminPatience)
	defer cancel()
	for range 12 {
		c, err := connector.Connect(ctx)
		if err != nil {
			break
		}
		all = append(all, c)
	}
	return all
}
