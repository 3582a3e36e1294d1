package soak

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/testenv"
)

func TestTheSeedDecidesWhatIsDone(t *testing.T) {
	units := func(seed uint64) (all []string) {
		for unit := range int64(200) {
			for n := range planOf(seed, unit, 0).of {
				p := planOf(seed, unit, n)
				all = append(all, fmt.Sprintln(p, p.after, p.pauses, p.think, p.cancelled))
			}
		}
		return all
	}
	faults := func(seed uint64) (all []string) {
		for h := range hands {
			s := newSchedule(seed, h, alone, nil)
			for range 200 {
				f := s.draw()
				all = append(all, fmt.Sprintln(f.kind.name, f.pause, f.hold, f.rolls))
			}
		}
		return all
	}
	for name, plans := range map[string]func(uint64) []string{"units": units, "faults": faults} {
		if !slices.Equal(plans(7), plans(7)) {
			t.Errorf("%s: the same seed planned differently", name)
		}
		if slices.Equal(plans(7), plans(8)) {
			t.Errorf("%s: two seeds planned the same", name)
		}
	}
}

func TestEverythingIsDrawnSoonerOrLater(t *testing.T) {
	const units = 5000
	seen := map[string]int{}
	for unit := range int64(units) {
		p := planOf(1, unit, 0)
		seen[p.mode.String()]++
		seen[p.style.String()]++
		seen[p.fate.String()]++
		for _, s := range p.steps {
			seen[s.String()]++
		}
		for name, is := range map[string]bool{"again": p.of > 1, "careless": p.careless, "ends": p.ends > 0, "cancelled": p.cancelled, "hasty": p.hasty >= 0} {
			if is {
				seen[name]++
			}
		}
		if p.src == p.dst || p.of > 1 && p.mode != once || p.careless && p.has(stepInner) {
			t.Errorf("this makes no sense: %s", p)
		}
	}
	for _, name := range append(stepNames[:], "no option", "Once", "VerifyCommit", "ReadOnly", "literal", "with arguments", "prepared",
		"succeeds", "fails", "panics", "again", "careless", "ends", "cancelled", "hasty") {
		if seen[name] < units/100 {
			t.Errorf("%s: %d of %d units", name, seen[name], units)
		}
	}
	drawn := map[string]bool{}
	for _, on := range []shape{alone, aPair, aCluster, hostPair, hostCluster} {
		for h := range hands {
			for s, n := newSchedule(1, h, on, nil), 0; n < 500; n++ {
				k := s.draw().kind
				if drawn[k.name] = true; k.on&on == 0 {
					t.Errorf("%s was drawn for servers of the shape %d", k.name, on)
				}
			}
		}
	}
	if len(drawn) != len(kinds) {
		t.Errorf("of %d kinds of faults only these were drawn: %v", len(kinds), drawn)
	}
}

// The faults alone, without what they wait for, come at more than 1.5 a second.
func TestFaultsAreFrequent(t *testing.T) {
	perSecond := 0.0
	for h := range hands {
		s, sum := newSchedule(1, h, alone, nil), time.Duration(0)
		const n = 1000
		for range n {
			f := s.draw()
			sum += f.pause + f.hold
		}
		perSecond += n / sum.Seconds()
	}
	if perSecond < 2 {
		t.Errorf("%.1f a second", perSecond)
	}
}

func TestUnitsOfAClusterPrepareNothing(t *testing.T) {
	r := roster{seed: 1, onCluster: true}
	for range 100 {
		if d := r.take(0, true, true); d.style != literal || !d.onCluster {
			t.Fatalf("%s", d.plan)
		}
	}
}

func TestOnly(t *testing.T) {
	set, err := parse([]string{"-only", "kill,rst", "-seed", "5", "-naive"}, io.Discard)
	if err != nil || !slices.Equal(set.only, []string{"kill", "rst"}) || set.seed != 5 || !set.naive {
		t.Fatalf("%+v, %v", set, err)
	}
	for h, want := range map[hand]string{network: "rst", theServer: "kill"} {
		for s, n := newSchedule(1, h, alone, set.only), 0; n < 20; n++ {
			if got := s.draw().kind.name; got != want {
				t.Errorf("drew %s, want %s", got, want)
			}
		}
	}
	if newSchedule(1, network, alone, []string{"kill"}) != nil {
		t.Error("a hand without faults has a schedule")
	}
	for _, bad := range [][]string{{"-only", "earthquake"}, {"-only", "failover"}, {"-only", "crash", "-server", "galera"}, {"-only", "takeover-killed", "-server", "pair"}, {"-naive", "-server", "pair-mysql"}, {"-server", "abacus"}, {"-workers", "0"}, {"-duration", "0s"}, {"more"}, {"-nonsense"}} {
		if _, err := parse(bad, io.Discard); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

// Of several ways a fault of the network strikes the one in use, the others, or all.
func TestWaysThatAreStruck(t *testing.T) {
	l := &lane{}
	defer l.close()
	for range 3 {
		if err := l.addWay("127.0.0.1:1", true); err != nil {
			t.Fatal(err)
		}
	}
	l.ways[1].far.HangNew(true)
	c, err := net.Dial("tcp", l.addrs()[1])
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for start := time.Now(); l.used() != 1 || l.conns() != 1 || l.opened() != 1; time.Sleep(time.Millisecond) {
		if time.Since(start) > 10*time.Second {
			t.Fatalf("way %d of %d connections is the one in use", l.used(), l.conns())
		}
	}
	all := l.ways
	for roll, want := range map[float64][]*way{0: all[1:2], 0.5: all[1:2], 0.7: {all[0], all[2]}, 0.9: all} {
		if got := l.struck(fault{rolls: [4]float64{3: roll}}); !slices.Equal(got, want) {
			t.Errorf("%v struck %d ways, want %d", roll, len(got), len(want))
		}
	}
	single := &lane{ways: all[:1]}
	if got := single.struck(fault{}); !slices.Equal(got, all[:1]) {
		t.Errorf("of one way %d were struck", len(got))
	}
}

// told is a delivery that was told err in its one attempt.
func told(unit int64, n, of int, m mode, err error) *delivery {
	d := &delivery{
		plan:    &plan{unit: unit, delivery: n, of: of, mode: m, src: 1, dst: 2, amount: 10, hasty: -1, steps: []step{stepLedger, stepCounter, stepTransfer}},
		started: time.Second, ended: 2 * time.Second, err: err,
		attempts: []attempt{{number: 1, whole: true}},
	}
	if err == nil {
		d.hooks = []int{1}
	}
	return d
}

// booksOf are right if the rows are.
func booksOf(rows ...row) *books {
	b := &books{rows: rows}
	for id := range b.balances {
		b.balances[id] = openingBalance
	}
	for _, r := range rows {
		b.balances[r.src] -= int64(r.amount)
		b.balances[r.dst] += int64(r.amount)
		if r.part == partUnit {
			b.counters[r.unit%shards]++
		}
	}
	return b
}

func rowOf(unit int64, delivery int) row {
	return row{unit: unit, delivery: delivery, attempt: 1, src: 1, dst: 2, amount: 10}
}

func TestJudgeFindsWhatIsPlanted(t *testing.T) {
	failed := errors.New("no such luck")
	unknown := fmt.Errorf("told: %w", livepool.ErrCommitUnknown)
	for _, tt := range []struct {
		name  string
		all   []*delivery
		books *books
		spoil func(ds []*delivery, b *books)
		want  []string
	}{
		{"all is well", []*delivery{told(1, 0, 1, plain, nil), told(2, 0, 1, verify, failed)}, booksOf(rowOf(1, 0)), nil, nil},
		{"unknown, and applied", []*delivery{told(1, 0, 1, plain, unknown)}, booksOf(rowOf(1, 0)), nil, nil},
		{"unknown, and not applied", []*delivery{told(1, 0, 1, plain, unknown)}, booksOf(), nil, nil},
		{"one delivery is applied, the other not run", []*delivery{told(1, 0, 2, once, nil), told(1, 1, 2, once, nil)}, booksOf(rowOf(1, 1)),
			func(ds []*delivery, _ *books) { ds[0].attempts, ds[0].hooks = nil, nil }, nil},
		{"a read-only unit", []*delivery{told(1, 0, 1, readOnly, nil)}, booksOf(), nil, nil},

		{"a row twice", []*delivery{told(1, 0, 1, plain, nil)}, booksOf(rowOf(1, 0), rowOf(1, 0)), nil, []string{ruleTwice}},
		{"two deliveries applied", []*delivery{told(1, 0, 2, once, nil), told(1, 1, 2, once, nil)}, booksOf(rowOf(1, 0), rowOf(1, 1)), nil, []string{ruleTwice}},
		{"a row missing", []*delivery{told(1, 0, 1, plain, nil)}, booksOf(), nil, []string{ruleLost}},
		{"no delivery applied", []*delivery{told(1, 0, 2, once, failed), told(1, 1, 2, once, nil)}, booksOf(), nil, []string{ruleLost}},
		{"a row of a unit that failed", []*delivery{told(1, 0, 1, plain, failed)}, booksOf(rowOf(1, 0)), nil, []string{ruleFailedUnit}},
		{"a row of the delivery that failed", []*delivery{told(1, 0, 2, once, failed), told(1, 1, 2, once, nil)}, booksOf(rowOf(1, 0)),
			func(ds []*delivery, _ *books) { ds[1].hooks = nil }, []string{ruleFailedUnit}},
		{"a row of nobody", nil, booksOf(rowOf(9, 0)), nil, []string{ruleStranger}},
		{"a row of a read-only unit", []*delivery{told(1, 0, 1, readOnly, nil)}, booksOf(rowOf(1, 0)), nil, []string{ruleStranger}},
		{"a row of an inner unit that failed", []*delivery{told(1, 0, 1, plain, failed)},
			booksOf(row{unit: 1, part: partUndone, src: 1, dst: 1, amount: 1000}), nil, []string{ruleUndone}},
		{"an inner unit missing", []*delivery{told(1, 0, 1, plain, nil)}, booksOf(rowOf(1, 0)),
			func(ds []*delivery, _ *books) { ds[0].steps = append(ds[0].steps, stepInner) }, []string{ruleInner}},
		{"an inner unit alone", []*delivery{told(1, 0, 1, plain, failed)}, booksOf(row{unit: 1, part: partInner}), nil, []string{ruleInner}},
		{"an earlier attempt", []*delivery{told(1, 0, 1, plain, unknown)}, booksOf(rowOf(1, 0)),
			func(ds []*delivery, _ *books) { ds[0].attempts = append(ds[0].attempts, attempt{number: 2}) }, []string{ruleAttempt}},
		{"an attempt of a cluster that was overtaken", []*delivery{told(1, 0, 1, verify, nil)}, booksOf(rowOf(1, 0)),
			func(ds []*delivery, _ *books) {
				ds[0].onCluster, ds[0].attempts = true, append(ds[0].attempts, attempt{number: 2})
			}, nil},
		{"an attempt of a cluster that had not come to its end", []*delivery{told(1, 0, 1, verify, nil)}, booksOf(rowOf(1, 0)),
			func(ds []*delivery, _ *books) {
				ds[0].onCluster, ds[0].attempts = true, []attempt{{number: 1}, {number: 2}}
			}, []string{ruleAttempt}},
		{"a hook after a failure", []*delivery{told(1, 0, 1, plain, failed)}, booksOf(),
			func(ds []*delivery, _ *books) { ds[0].hooks = []int{1} }, []string{ruleHook}},
		{"a hook that was forgotten", []*delivery{told(1, 0, 1, plain, nil)}, booksOf(rowOf(1, 0)),
			func(ds []*delivery, _ *books) { ds[0].hooks = nil }, []string{ruleHook}},
		{"a hook twice", []*delivery{told(1, 0, 1, plain, nil)}, booksOf(rowOf(1, 0)),
			func(ds []*delivery, _ *books) { ds[0].hooks = []int{1, 1} }, []string{ruleHook}},
		{"a hook of another attempt", []*delivery{told(1, 0, 2, once, nil)}, booksOf(rowOf(1, 0)),
			func(ds []*delivery, _ *books) { ds[0].hooks = []int{2} }, []string{ruleHook}},
		{"a hook of an attempt without COMMIT", []*delivery{told(1, 0, 2, once, nil), told(1, 1, 2, once, nil)}, booksOf(rowOf(1, 1)),
			func(ds []*delivery, _ *books) { ds[0].attempts[0].whole = false }, []string{ruleHook}},
		{"unknown without need", []*delivery{told(1, 0, 1, verify, unknown)}, booksOf(), nil, []string{ruleResolved}},
		{"not run again", []*delivery{told(1, 0, 1, plain, context.DeadlineExceeded), told(2, 0, 1, plain, io.ErrUnexpectedEOF)}, booksOf(), nil, []string{ruleGaveUp}},
		{"said to be lost twice over one statement, and was not", []*delivery{told(1, 0, 1, plain, fmt.Errorf("%s: %w", lostTwice, io.ErrUnexpectedEOF))}, booksOf(), nil, []string{ruleGaveUp}},
		{"lost twice over one statement", []*delivery{told(1, 0, 1, plain, fmt.Errorf("%s: %w", lostTwice, io.ErrUnexpectedEOF))}, booksOf(),
			func(ds []*delivery, _ *books) {
				ds[0].attempts = []attempt{{number: 1, notes: []string{"sum: EOF"}}, {number: 2, notes: []string{"sum: EOF"}}}
			}, nil},
		{"lost twice over one statement, and between that on a connection that was dead before", []*delivery{told(1, 0, 1, plain, fmt.Errorf("%s: %w", lostTwice, io.ErrUnexpectedEOF))}, booksOf(),
			func(ds []*delivery, _ *books) {
				ds[0].attempts = []attempt{{number: 1, notes: []string{"sum: EOF"}},
					{number: 2, notes: []string{"row: livepool: connection 7, 2s old, was given up before the statement ran: EOF"}}, {number: 3, notes: []string{"sum: EOF"}}}
			}, nil},
		{"lost twice over one statement, and between that over another", []*delivery{told(1, 0, 1, plain, fmt.Errorf("%s: %w", lostTwice, io.ErrUnexpectedEOF))}, booksOf(),
			func(ds []*delivery, _ *books) {
				ds[0].attempts = []attempt{{number: 1, notes: []string{"sum: EOF"}}, {number: 2, notes: []string{"row: EOF"}}, {number: 3, notes: []string{"sum: EOF"}}}
			}, []string{ruleGaveUp}},
		{"something seen by the unit itself", []*delivery{told(1, 0, 1, plain, nil)}, booksOf(rowOf(1, 0)),
			func(ds []*delivery, _ *books) { ds[0].sees("two of them") }, []string{ruleSeen}},
		{"money lost", []*delivery{told(1, 0, 1, plain, nil)}, booksOf(rowOf(1, 0)),
			func(_ []*delivery, b *books) { b.balances[3]-- }, []string{ruleMoney}},
		{"money moved", []*delivery{told(1, 0, 1, plain, nil)}, booksOf(rowOf(1, 0)),
			func(_ []*delivery, b *books) { b.balances[3]--; b.balances[4]++ }, []string{ruleMoney}},
		{"counted too often", []*delivery{told(1, 0, 1, plain, nil)}, booksOf(rowOf(1, 0)),
			func(_ []*delivery, b *books) { b.counters[1]++ }, []string{ruleCounter}},
	} {
		if tt.spoil != nil {
			tt.spoil(tt.all, tt.books)
		}
		var rules []string
		for _, v := range judge(tt.all, tt.books) {
			rules = append(rules, v.Rule)
		}
		if !slices.Equal(rules, tt.want) {
			t.Errorf("%s: found %q, want %q", tt.name, rules, tt.want)
		}
	}
}

func TestTracesAreFound(t *testing.T) {
	before := takeTraces()
	if vs := before.compare(0); len(vs) > 0 {
		t.Errorf("found without a cause: %v", vs)
	}
	stop := make(chan struct{})
	go planted(stop)
	child := exec.Command("sleep", "60")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	found := fmt.Sprint(before.compare(0))
	for _, want := range []string{"soak.TestTracesAreFound", "soak.planted", fmt.Sprint("process ", child.Process.Pid)} {
		if !strings.Contains(found, want) {
			t.Errorf("no %q in what was found: %s", want, found)
		}
	}
	close(stop)
	child.Process.Kill()
	child.Wait()
	if vs := before.compare(5 * time.Second); len(vs) > 0 {
		t.Errorf("found after its end: %v", vs)
	}
}

func planted(stop chan struct{}) { <-stop }

func testGround(t *testing.T) *ground {
	t.Helper()
	if testing.Short() {
		t.Skip("needs a server")
	}
	g, err := newGround(t.Context(), settings{server: "mariadb"}, slog.New(slog.DiscardHandler))
	if errors.Is(err, server.ErrUnavailable) {
		testenv.Missing(t, "%v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.close() })
	return g
}

// What is planted in the tables and on the server itself is found.
func TestLeftoversAreFound(t *testing.T) {
	g := testGround(t)
	l, err := g.addLane("planted", naiveUser, naivePassword, true)
	if err != nil {
		t.Fatal(err)
	}
	n, err := newNaive(&run{ground: g}, l)
	if err != nil {
		t.Fatal(err)
	}
	rules := func(vs []violation) (names []string) {
		for _, v := range vs {
			names = append(names, v.Rule)
		}
		slices.Sort(names)
		return slices.Compact(names)
	}
	if vs := g.leftovers(0); len(vs) > 0 {
		t.Errorf("found without a cause: %+v", vs)
	}
	tx, err := n.db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec("UPDATE " + l.tables.account + " SET balance = balance - 1 WHERE id = 0"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(300 * time.Millisecond) // see leftovers
	if got, want := rules(g.leftovers(0)), []string{"no connection is left", "no lock is left", "no transaction is left"}; !slices.Equal(got, want) {
		t.Errorf("found %q, want %q", got, want)
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(300 * time.Millisecond)
	if got, want := rules(g.leftovers(0)), []string{"no connection is left"}; !slices.Equal(got, want) {
		t.Errorf("found %q, want %q", got, want)
	}
	n.db.Close()
	if vs := g.leftovers(closePatience); len(vs) > 0 {
		t.Errorf("found after the end: %+v", vs)
	}
	insert := "INSERT INTO " + l.tables.ledger + " (unit, delivery, attempt, part, src, dst, amount) VALUES (1, 0, 1, 0, 1, 2, 10)"
	if err := g.exec(t.Context(), insert, insert); err != nil {
		t.Fatal(err)
	}
	b, vs, err := g.read(l.tables)
	if err != nil || vs != nil {
		t.Fatal(vs, err)
	}
	if got, want := rules(judge([]*delivery{told(1, 0, 1, plain, nil)}, b)), []string{ruleTwice, ruleMoney, ruleCounter}; len(got) != len(want) {
		t.Errorf("found %q, want %q", got, want)
	}
}

// What differs between the servers is found.
func TestDifferencesAreFound(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spoil func(b *books)
		want  string
	}{
		{"nothing", func(*books) {}, ""},
		{"a row less", func(b *books) { b.rows = b.rows[:1] }, "rows in the ledger"},
		{"a row more", func(b *books) { b.rows = append(b.rows, rowOf(3, 0)) }, "rows in the ledger"},
		{"another row", func(b *books) { b.rows[1].amount++ }, "row 1 of the ledger"},
		{"the counter", func(b *books) { b.counters[1]++ }, "counters"},
		{"a plain row", func(b *books) { b.plain = map[int64]int{1: 1} }, "plain"},
		{"a list", func(b *books) { b.lists = map[int]string{1: "7,"} }, "lists"},
		{"the money", func(b *books) { b.balances[1]++ }, "balances"},
	} {
		b, other := booksOf(rowOf(1, 0), rowOf(2, 0)), booksOf(rowOf(1, 0), rowOf(2, 0))
		tt.spoil(other)
		if got := b.differs(other); (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

// Some seconds on each sort of real servers.
func TestSoak(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	for _, tt := range []struct{ server, duration string }{
		{"mariadb", "10s"}, {"mariadb-11.8", "5s"}, {"pair", "10s"}, {"pair-balanced-mysql", "10s"}, {"galera", "15s"},
		{"pair-mariadb", "15s"}, {"pair-mysql", "20s"}, {"galera-hosts", "15s"},
	} {
		t.Run(tt.server, func(t *testing.T) { testSoak(t, tt.server, tt.duration) })
	}
}

func testSoak(t *testing.T, on, duration string) {
	report := filepath.Join(t.TempDir(), "soak.json")
	set, err := parse([]string{"-duration", duration, "-seed", "1", "-server", on, "-report", report}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	log, err := openLog(report)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	o, err := soak(t.Context(), set, log, os.Stderr)
	if errors.Is(err, server.ErrUnavailable) {
		testenv.Missing(t, "%v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	o.write(&text)
	if err := o.save(report); err != nil {
		t.Error(err)
	}
	if !o.kept() || len(o.events) < 8 || o.live.Applied < 50 || o.lists.Reads < 10 || o.lists.Appends < 10 || len(o.plain) < 20 || o.looks < 10 {
		t.Error(text.String())
	}
}
