// faults.go is the faults: how each strikes, and how it is healed.

package soak

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/livepool/livepool/internal/proxy"
	"github.com/livepool/livepool/internal/server"
)

// kinds are all there are. How long each lasts is about what it takes to be
// noticed, sometimes less and sometimes more.
var kinds = []*kind{
	{"kill", theServer, anyShape, 8, span{}, kill("KILL")},
	{"kill-query", theServer, anyShape, 3, span{}, kill("KILL QUERY")},
	{"fin", network, anyShape, 3, span{}, end("FIN", (*proxy.Proxy).FIN)},
	{"rst", network, anyShape, 3, span{}, end("RST", (*proxy.Proxy).RST)},
	{"stall", network, anyShape, 4, span{100, 1500}, stall},
	{"black-hole", network, anyShape, 3, span{0, 200}, blackHole},
	{"drop-to-server", network, anyShape, 3, span{50, 800}, drop("drop to the server", (*proxy.Proxy).DropToServer)},
	{"drop-to-client", network, anyShape, 3, span{50, 800}, drop("drop to the client", (*proxy.Proxy).DropToClient)},
	{"hang-new", network, anyShape, 3, span{100, 1200}, hangNew},
	{"refuse", network, anyShape, 3, span{50, 800}, refuse},
	{"cut-commit", network, anyShape, 14, span{50, 1500}, cut("COMMIT", isCommit)},
	{"cut-statement", network, anyShape, 8, span{50, 1200}, cut("a statement", isStatement)},
	{"crash", theServer, alone | aPair, 1, span{0, 500}, crash},
	{"pause", theServer, alone | aPair, 3, span{100, 1800}, freeze},
	{"wait-timeout", theServer, anyShape, 2, span{1300, 2300}, shortenWaitTimeout},
	{"read-only", theServer, alone, 3, span{50, 900}, forbidWrites},
	{"deadlock", theServer, anyShape, 5, span{5, 40}, deadlock},
	{"lock", theServer, anyShape, 4, span{200, 1800}, lockRow},
	{"max-connections", theServer, anyShape, 3, span{200, 1200}, exhaust},
	{"role-switch", theServer, aPair, 4, span{0, 1500}, switchRoles},
	{"failover", theServer, aPair, 2, span{0, 800}, failOver},
	{"node-kill", theServer, aCluster, 2, span{0, 1500}, killNode},
	{"node-isolate", theServer, aCluster, 3, span{200, 2500}, isolateNode},
	{"node-freeze", theServer, aCluster, 3, span{200, 5000}, freezeNode},
}

// strikeFunc is what a kind does.
type strikeFunc = func(ctx context.Context, n *nemesis, f fault) (string, error)

// end closes what there is, before the one proxy or the other.
func end(label string, do func(*proxy.Proxy)) strikeFunc {
	return func(_ context.Context, n *nemesis, f fault) (string, error) {
		struck := ""
		for _, l := range n.ground.lanes {
			p := l.near
			if f.of(0, 2) == 1 {
				p = l.far
			}
			if p.Conns() > 0 && l == n.ground.lanes[0] {
				struck = label
			}
			do(p)
		}
		return struck, nil
	}
}

// maybeEnd ends the connections there are, or leaves them as they are, so that a
// fault of new ones is met.
func (f fault) maybeEnd(l *lane) string {
	switch f.of(1, 3) {
	case 0:
		l.near.FIN()
		return ", FIN for the others"
	case 1:
		l.near.RST()
		return ", RST for the others"
	}
	return ""
}

func stall(ctx context.Context, n *nemesis, f fault) (string, error) {
	for _, l := range n.ground.lanes {
		l.near.Stall()
		defer l.near.Heal()
	}
	pause(ctx, f.hold)
	return "stall", nil
}

// blackHole is a stall that does not end before the run does.
func blackHole(ctx context.Context, n *nemesis, f fault) (string, error) {
	for _, l := range n.ground.lanes {
		if !l.forGood {
			l.far.Heal() // of the last one
		}
		l.far.Stall()
	}
	pause(ctx, f.hold)
	return "stall for good", nil
}

func drop(label string, do func(*proxy.Proxy, bool)) strikeFunc {
	return func(ctx context.Context, n *nemesis, f fault) (string, error) {
		for _, l := range n.ground.lanes {
			do(l.near, true)
			defer do(l.near, false)
		}
		pause(ctx, f.hold)
		return label, nil
	}
}

func hangNew(ctx context.Context, n *nemesis, f fault) (string, error) {
	label := "hang new"
	for i, l := range n.ground.lanes {
		l.near.HangNew(true)
		defer l.near.Heal()
		if others := f.maybeEnd(l); i == 0 {
			label += others
		}
	}
	pause(ctx, f.hold)
	return label, nil
}

func refuse(ctx context.Context, n *nemesis, f fault) (string, error) {
	label := "refuse"
	for i, l := range n.ground.lanes {
		l.near.Refuse()
		if others := f.maybeEnd(l); i == 0 {
			label += others
		}
	}
	pause(ctx, f.hold)
	return label, n.heal("reopening", func(context.Context) error {
		var errs []error
		for _, l := range n.ground.lanes {
			errs = append(errs, l.near.Reopen())
		}
		return errors.Join(errs...)
	})
}

func isCommit(fault) proxy.Match { return proxy.QueryPrefix("COMMIT") }

// statementBeginnings are the statements that a unit or its pool sends as text.
var statementBeginnings = []string{
	"START TRANSACTION", "INSERT INTO", "UPDATE", "SELECT", "SAVEPOINT", "ROLLBACK", "RELEASE",
}

// isStatement matches one sort of statement or another, as the fault has it.
func isStatement(f fault) proxy.Match {
	switch n := f.of(2, len(statementBeginnings)+3); n {
	case 0:
		return proxy.Command(proxy.ComPing)
	case 1:
		return proxy.Command(proxy.ComStmtPrepare)
	case 2:
		return proxy.Command(proxy.ComStmtExecute)
	default:
		return proxy.QueryPrefix(statementBeginnings[n-3])
	}
}

// cutPatience is how long a cut waits for its command.
const cutPatience = 400 * time.Millisecond

// cut does away with a command, or with the reply to it, or holds it up.
func cut(what string, match func(fault) proxy.Match) strikeFunc {
	return func(ctx context.Context, n *nemesis, f fault) (string, error) {
		how := f.of(0, 5)
		fault := []proxy.Fault{proxy.FIN, proxy.RST, proxy.KillServerSide, proxy.Stall, proxy.Stall}[how]
		name := []string{"FIN", "RST", "server side closed", "stall", "stall for good"}[how]
		forGood := how == 4
		after := f.rolls[1] < 0.6
		place := "before"
		if after {
			place = "after"
		}
		var cuts []*proxy.Cut
		for _, l := range n.ground.lanes {
			p := l.near
			if forGood && l.forGood {
				p = l.far
			}
			do := p.CutBefore
			if after {
				do = p.CutAfter
			}
			cuts = append(cuts, do(match(f), fault))
		}
		timer := time.NewTimer(cutPatience)
		defer timer.Stop()
		select {
		case <-cuts[0].Done():
		case <-timer.C:
		case <-ctx.Done():
		}
		for _, c := range cuts {
			c.Cancel()
		}
		if fault == proxy.Stall {
			pause(ctx, f.hold)
			for _, l := range n.ground.lanes {
				l.near.Heal()
			}
		}
		if !cuts[0].Fired() {
			return "", nil
		}
		return fmt.Sprintf("cut %s %s, %s", place, what, name), nil
	}
}

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
	pause(ctx, f.hold)
	return "SIGKILL and restart", n.heal("starting the server", func(context.Context) error { return victim.Start() })
}

func freeze(ctx context.Context, n *nemesis, f fault) (string, error) {
	victim := n.victim(f)
	if err := victim.Pause(); err != nil {
		return "", err
	}
	pause(ctx, f.hold)
	return "SIGSTOP and SIGCONT", victim.Resume()
}

// shortenWaitTimeout has the server close the pool's connections while they are
// idle, for which it has the workers rest.
func shortenWaitTimeout(ctx context.Context, n *nemesis, f fault) (string, error) {
	if err := n.set(ctx, "wait_timeout", 1); err != nil {
		return "", err
	}
	n.run.pool.Recycle()
	pause(ctx, 300*time.Millisecond) // for new connections to be opened
	n.run.work.lull(f.hold)
	pause(ctx, f.hold)
	err := n.heal("wait_timeout", func(ctx context.Context) error { return n.set(ctx, "wait_timeout", waitTimeout) })
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

// forbidWrites makes the server read-only. That waits for what is being written,
// and the server waits on when nobody is left who wants it: so a request that was
// given up is ended there, lest it is granted after the healing.
func forbidWrites(ctx context.Context, n *nemesis, f fault) (label string, err error) {
	on, off := n.readOnlyVariables()
	victim := n.ground.truth()
	conn, err := victim.admin.Conn(ctx)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	var id int64
	if err := conn.QueryRowContext(ctx, "SELECT CONNECTION_ID()").Scan(&id); err != nil {
		return "", err
	}
	asking, cancel := context.WithTimeout(ctx, adminPatience)
	defer cancel()
	_, struck := conn.ExecContext(asking, "SET GLOBAL "+on+" = 1")
	if struck == nil {
		label = "read-only"
		pause(ctx, f.hold)
	}
	return label, errors.Join(struck, n.heal(off, func(ctx context.Context) error {
		if struck != nil {
			if err := victim.end(ctx, id); err != nil {
				return err
			}
		}
		return n.set(ctx, off, 0)
	}))
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
	for _, v := range []struct {
		name  string
		value int
	}{{"wait_timeout", waitTimeout}, {"max_connections", maxConnections}} {
		if err := n.set(ctx, v.name, v.value); err != nil {
			return err
		}
	}
	return nil
}

// holding runs f in a transaction of root's, which is rolled back.
func (n *node) holding(ctx context.Context, f func(ctx context.Context, tx *sql.Tx) error) error {
	ctx, cancel := context.WithTimeout(ctx, 2*adminPatience)
	defer cancel()
	tx, err := n.admin.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	return f(ctx, tx)
}

// deadlock has two transactions cross the units' rows in opposite orders. They
// weigh more than any unit, so that the server sacrifices the units; in a cluster
// they may be on two nodes, and what the one holds the other learns from no lock.
func deadlock(ctx context.Context, n *nemesis, f fault) (string, error) {
	var wg sync.WaitGroup
	var struck atomic.Int32
	order := rand.New(rand.NewPCG(uint64(f.number), 1)).Perm(accounts)[:8]
	for side := range 2 {
		rows := slices.Clone(order)
		if side == 1 {
			slices.Reverse(rows)
		}
		wg.Go(func() {
			_ = n.lockable(f, side).holding(ctx, func(ctx context.Context, tx *sql.Tx) error { // in the end one of them is the victim
				if _, err := tx.ExecContext(ctx, "DELETE FROM "+ballast[side]); err != nil {
					return err
				}
				for i, id := range rows {
					for _, l := range n.ground.lanes {
						if _, err := tx.ExecContext(ctx, fmt.Sprintf("UPDATE %s SET balance = balance WHERE id = %d", l.tables.account, id)); err != nil {
							return err
						}
					}
					if i > 0 {
						struck.Add(1)
					}
					pause(ctx, f.hold)
				}
				return nil
			})
		})
	}
	wg.Wait()
	if struck.Load() == 0 {
		return "", nil
	}
	return "crossing transactions", nil
}

// lockRow holds some rows for longer than some units wait.
func lockRow(ctx context.Context, n *nemesis, f fault) (string, error) {
	struck := ""
	err := n.lockable(f, 0).holding(ctx, func(ctx context.Context, tx *sql.Tx) error {
		for _, l := range n.ground.lanes {
			queries := []string{
				fmt.Sprintf("SELECT balance FROM %s WHERE id IN (%d, %d) FOR UPDATE", l.tables.account, f.of(1, accounts), f.of(2, accounts)),
				fmt.Sprintf("SELECT n FROM %s WHERE id = %d FOR UPDATE", l.tables.counter, f.of(1, shards)),
			}
			if _, err := tx.ExecContext(ctx, queries[f.of(0, 2)]); err != nil {
				return err
			}
			struck = "rows locked"
		}
		pause(ctx, f.hold)
		return nil
	})
	return struck, err
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
	pause(ctx, f.hold)
	return "max_connections used up", n.heal("max_connections", func(ctx context.Context) error { return n.set(ctx, "max_connections", maxConnections) })
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
