package behaviour_test

// Pools on several hosts, of which one takes writes, and another one after a failover.

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/proxy"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

// hostPair is a primary and a replica, or two, without which it acknowledges nothing, each
// behind a proxy of its own, and a pool on all.
type hostPair struct {
	*server.Pair
	t     *testing.T
	via   map[*server.Server]*proxy.Proxy
	pool  *livepool.Pool
	log   *labtest.CapturedLog
	plain chan error // what became of a plain statement that was sent after the fault; nil: none was
}

func hostPairOf(t *testing.T, kind server.Kind, params string) *hostPair {
	return hostsWith(t, kind, 1, params)
}

func hostsWith(t *testing.T, kind server.Kind, replicas int, params string) *hostPair {
	o := server.Options{SemiSync: true, Replicas: replicas, Args: []string{"--innodb-lock-wait-timeout=1"}}
	h := &hostPair{t: t, Pair: servertest.RunPairOptions(t, kind, o)}
	if err := h.Primary().Exec(ledgerTable); err != nil {
		t.Fatal(err)
	}
	via, addrs := proxiesTo(t, h.Servers()...)
	h.via = map[*server.Server]*proxy.Proxy{}
	for i, s := range h.Servers() {
		h.via[s] = via[i]
	}
	h.pool, h.log = openLogged(t, h.Primary().AppDSN(addrs), params)
	if err := h.pool.CreateCommitTable(t.Context()); err != nil {
		t.Fatal(err)
	}
	return h
}

// hostsOf is a primary and its replica as two hosts, and what may happen to them there.
func hostsOf(t *testing.T, kind server.Kind) *group {
	p := servertest.RunPair(t, kind, "--innodb-lock-wait-timeout=1")
	if err := p.Primary().Exec(ledgerTable); err != nil {
		t.Fatal(err)
	}
	g := (&group{title: p.Primary().Version(), servers: []*server.Server{p.Primary(), p.Replica()}}).asHosts(t)
	lead := func() []string { return []string{p.Primary().Addr()} }
	g.before, g.after = lead, lead
	g.awaitSync = func() error { return p.CatchUp(t.Context()) }
	promote := func(how func(old *server.Server) error) func() error {
		return func() error {
			return errors.Join(p.CatchUp(t.Context()), how(p.Primary()), p.Promote(t.Context()))
		}
	}
	rejoin := func(how func(old *server.Server) error) func() error {
		return func() error { return errors.Join(how(p.Replica()), p.Rejoin(t.Context())) }
	}
	g.faults = []groupFault{
		{name: "role switch", inject: func() error { return p.Switch(t.Context()) }, repair: func() error { return nil }},
		{name: "SIGKILL, promotion", inject: promote((*server.Server).Kill), repair: func() error { return p.Rejoin(t.Context()) }},
		{name: "SIGSTOP, promotion", cutsOff: true, inject: promote((*server.Server).Pause), repair: rejoin(func(old *server.Server) error {
			g.via[old.Addr()].FIN() // and what was held up with it
			g.via[old.Addr()].Heal()
			return old.Resume()
		})},
		{name: "cut off, promotion", cutsOff: true, inject: promote(func(old *server.Server) error {
			g.via[old.Addr()].HangNew(true) // first, or a connection might come between the two, and work on
			g.via[old.Addr()].Stall()
			return nil
		}), repair: rejoin(func(old *server.Server) error {
			g.via[old.Addr()].FIN() // and what was held up with it
			g.via[old.Addr()].Heal()
			g.via[old.Addr()].HangNew(false)
			return nil
		})},
		{name: "both writable", inject: func() error { return p.Replica().SetReadOnly(false) }, repair: func() error { return p.Replica().SetReadOnly(true) }},
	}
	return g
}

// failover is a way in which the two change places.
type failover struct {
	name   string
	abrupt bool // the old primary answers nothing more
	// do makes the replica the primary, and returns when that takes writes.
	do func(h *hostPair) error
}

var failovers = []failover{
	{"a switch of roles", false, func(h *hostPair) error { return h.Switch(h.t.Context()) }},
	{"the primary killed", true, func(h *hostPair) error {
		err := h.Primary().Kill()
		h.plain = make(chan error, 1)
		go func() { // what is sent to one that is frozen may have run
			time.Sleep(200 * time.Millisecond) // until the proxy has told of it
			_, err := h.pool.ExecContext(h.t.Context(), "INSERT INTO ledger (unit) VALUES (-1)")
			h.plain <- err
		}()
		return errors.Join(err, h.Promote(h.t.Context()))
	}},
	{"the primary frozen", true, func(h *hostPair) error {
		old := h.Primary()
		h.t.Cleanup(func() { _ = old.Resume() })
		return errors.Join(old.Pause(), h.Promote(h.t.Context()))
	}},
	{"the primary cut off", true, func(h *hostPair) error {
		via := h.via[h.Primary()]
		via.HangNew(true)
		via.Stall()
		return h.Promote(h.t.Context())
	}},
}

// Whatever happens to the primary, its units wait for the next one: each is applied there
// exactly once.
func TestUnitsSurviveAFailoverAmongSeveralHosts(t *testing.T) {
	for _, kind := range server.Kinds() {
		for _, f := range failovers {
			t.Run(fmt.Sprintf("%s/%s", kind, f.name), func(t *testing.T) {
				t.Parallel()
				hostPairOf(t, kind, "pool_timeout=1m&pool_max_elapsed=1m").survives(f)
			})
		}
	}
}

// survives has units go on through a failover.
func (h *hostPair) survives(f failover) {
	t, old := h.t, h.Primary()
	w := (&workers{t: t, pool: h.pool}).start(8)
	time.Sleep(500 * time.Millisecond)
	// Without a unit that the old primary has acknowledged nothing tells what became of a COMMIT.
	labtest.Eventually(t, "a unit is applied", func() bool { return w.since(time.Time{}) > 0 })
	begun, takesWrites := time.Now(), h.whenWritable(h.Replica())
	if err := f.do(h); err != nil {
		t.Fatal(err)
	}
	promoted := <-takesWrites
	if h.plain != nil {
		if err := <-h.plain; err != nil {
			t.Errorf("a plain statement: %v", err)
		}
	}
	labtest.Eventually(t, "units are applied by the new primary", func() bool { return w.since(promoted) > 50 })
	units := w.stop()
	for unit := range units {
		if rows := count(t, h.Primary(), fmt.Sprintf("ledger WHERE unit = %d", unit)); rows != 1 {
			t.Errorf("unit %d has %d rows", unit, rows)
		}
	}
	if !f.abrupt {
		labtest.Eventually(t, "no connection is left with the old primary", func() bool { return h.via[old].Conns() == 0 })
	}
	t.Logf("promotion took %v; the first unit %v after that; %d units, %d run again, %d commits unknown at first", promoted.Sub(begun).Round(time.Millisecond),
		w.firstAfter(promoted).Round(time.Millisecond), units, h.pool.Stats().Retried, h.pool.Stats().CommitsUnknown)
	if lines := h.log.LinesWith("takes writes"); !f.abrupt && len(lines) != 2 {
		t.Errorf("the switch is told in %d lines:\n%s", len(lines), strings.Join(lines, "\n"))
	}
}

// whenWritable gives the time at which a server takes writes.
func (h *hostPair) whenWritable(s *server.Server) <-chan time.Time {
	at := make(chan time.Time, 1)
	db := openPlain(h.t, s.DSN())
	go func() {
		for readOnly := true; readOnly && h.t.Context().Err() == nil; time.Sleep(time.Millisecond) {
			if err := db.QueryRowContext(h.t.Context(), "SELECT @@GLOBAL.read_only").Scan(&readOnly); err != nil {
				h.t.Errorf("asking the replica: %v", err)
				break
			}
		}
		at <- time.Now()
	}()
	return at
}
