package connector_test

// Pools on several hosts, which are fakes: what a refused write does, who is left, who is told.

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
)

// newHost is a host that goes by its name, and refuses writes while it is read-only.
func newHost(name string, isReadOnly bool) *fakedb.Host {
	h := &fakedb.Host{Name: name}
	h.ReadOnly.Store(isReadOnly)
	h.OnExec = func(_ context.Context, _ *fakedb.Conn, query string) error {
		if h.ReadOnly.Load() && (strings.HasPrefix(query, "INSERT") || strings.HasPrefix(query, "DELETE")) {
			return fakedb.ServerError(1290, readOnlyText)
		}
		return nil
	}
	return h
}

// openHosts opens a pool on hosts at a:3306, b:3306 and so on.
func openHosts(t *testing.T, change func(*livepool.Config), hosts ...*fakedb.Host) (*livepool.Pool, *labtest.CapturedLog) {
	t.Helper()
	log := &labtest.CapturedLog{}
	cfg := livepool.NewConfig()
	cfg.MySQL, cfg.Logger = &mysql.Config{User: "app", Passwd: "s3cret", DBName: "shop"}, slog.New(log)
	for i := range hosts {
		cfg.Addrs = append(cfg.Addrs, string(rune('a'+i))+":3306")
	}
	if len(hosts) == 1 { // which is then used as it is
		cfg.MySQL.Addr, cfg.Addrs = cfg.Addrs[0], nil
	}
	cfg.Wrap = fakedb.Wrap(hosts...)
	if change != nil {
		change(cfg)
	}
	p, err := livepool.OpenConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p, log
}

const insert = "INSERT INTO t VALUES (1)"

// A write on a pool of replicas is a mistake of the program: it is told so, once, and is not
// sent again, for another replica would refuse it too. The connection is kept.
func TestWriteOnAPoolOfReplicasIsNotTriedAgain(t *testing.T) {
	exec := func(p *livepool.Pool) error { _, err := p.Exec(insert); return err }
	prepared := func(p *livepool.Pool) error {
		stmt, err := p.Prepare(insert)
		if err != nil {
			return err
		}
		defer stmt.Close()
		_, err = stmt.Exec()
		return err
	}
	transaction := func(p *livepool.Pool) error {
		tx, err := p.Begin()
		if err != nil {
			return err
		}
		defer tx.Rollback()
		_, err = tx.Exec(insert)
		return err
	}
	unit := func(p *livepool.Pool) error {
		return p.WithSession(context.Background(), func(ctx context.Context, s *livepool.Session) error {
			_, err := s.ExecContext(ctx, insert)
			return err
		})
	}
	for name, write := range map[string]func(*livepool.Pool) error{"statement": exec, "prepared": prepared, "transaction": transaction, "unit": unit} {
		for _, target := range []livepool.Target{livepool.TargetReplica, livepool.TargetPreferReplica} {
			t.Run(name+"/"+target.String(), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					a, b := newHost("a", true), newHost("b", true)
					a.OnExec = func(context.Context, *fakedb.Conn, string) error { return fakedb.ServerError(1290, readOnlyText) }
					b.OnExec = a.OnExec
					p, log := openHosts(t, func(c *livepool.Config) { c.Target = target }, a, b)
					start := time.Now()
					err := write(p)
					if !labtest.IsServerError(err, 1290) || !strings.Contains(err.Error(), "pool_target") {
						t.Errorf("%v, want error 1290, and that the pool uses replicas", err)
					}
					if took, sent := time.Since(start), a.Execs.Load()+b.Execs.Load(); took > 0 || sent != 1 {
						t.Errorf("it took %s, and was sent %d times, want at once, and once", took, sent)
					}
					if open := a.OpenConns() + b.OpenConns(); open != 1 || a.Connects.Load()+b.Connects.Load() != 1 {
						t.Errorf("%d connections are open of %d, want the one to be kept", open, a.Connects.Load()+b.Connects.Load())
					}
					if lines := log.LinesWith("takes no writes"); len(lines) != 0 {
						t.Errorf("it counts as an outage: %q", lines)
					}
				})
			})
		}
	}
}

// A pool on the primary follows it: a write that the old one refuses is sent to the new one.
// Every connection to the old one is closed, and the change is told in two lines.
func TestPoolFollowsThePrimary(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   labtest.UnitFunc // nil: a plain statement
		gap  time.Duration    // in which neither takes writes
	}{
		{"a statement, at once", nil, 0},
		{"a statement, after a while without any", nil, 3 * time.Second},
		{"a unit, at once", labtest.Insert(1), 0},
		{"a unit, after a while without any", labtest.Insert(1), 3 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := newHost("a", false), newHost("b", true)
				p, log := openHosts(t, nil, a, b)
				fakedb.Warm(t, p.DB, 5)
				if a.OpenConns() != 5 || b.OpenConns() != 0 {
					t.Fatalf("%d connections to the primary and %d to the other, want 5, 0", a.OpenConns(), b.OpenConns())
				}
				time.Sleep(10 * time.Second)
				a.ReadOnly.Store(true)
				time.AfterFunc(tt.gap, func() { b.ReadOnly.Store(false) })
				start := time.Now()
				var err error
				if tt.do == nil {
					_, err = p.Exec(insert)
				} else {
					err = p.WithSession(t.Context(), tt.do)
				}
				if took := time.Since(start); err != nil || took < tt.gap || took > tt.gap+1500*time.Millisecond {
					t.Errorf("%v after %s, want success soon after %s", err, took, tt.gap)
				}
				time.Sleep(10 * time.Second)
				if a.OpenConns() != 0 || b.OpenConns() == 0 {
					t.Errorf("%d connections are left to the old primary, and %d to the new one", a.OpenConns(), b.OpenConns())
				}
				lines := log.LinesWith("")
				if len(lines) != 2 || !strings.Contains(lines[0], "none of the hosts takes writes") || !strings.Contains(lines[1], "a host takes writes") || !strings.Contains(lines[1], "b:3306") {
					t.Errorf("the change is told by\n%s", strings.Join(lines, "\n"))
				}
			})
		})
	}
}

// A pool on any host, as of a cluster that writes everywhere, follows nobody: a refused write is
// sent elsewhere as with one host, and no role is a reason to be left.
func TestPoolOnAnyHostFollowsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newHost("a", true), newHost("b", true)
		p, _ := openHosts(t, func(c *livepool.Config) { c.Target = livepool.TargetAny }, a, b)
		if _, err := p.Exec("DO 1"); err != nil {
			t.Fatal(err)
		}
		if _, err := p.Exec(insert); !labtest.IsServerError(err, 1290) || strings.Contains(err.Error(), "pool_target") {
			t.Errorf("%v, want the plain refusal", err)
		}
		if err := p.PingContext(t.Context()); err != nil {
			t.Errorf("%v, want a pool that reads", err)
		}
	})
}

// Two hosts that both take writes are two truths, of which somebody is told, once. During a
// failover both may, for a moment; and one that is down may do so when it comes back.
func TestTwoPrimariesAreTold(t *testing.T) {
	const told = "two hosts take writes"
	for _, tt := range []struct {
		name   string
		both   time.Duration // when the other one begins to take writes; -1: never
		until  time.Duration // when it stops; 0: never
		down   time.Duration // how long it is down
		target livepool.Target
		lines  int
	}{
		{"from the start", 0, 0, 0, livepool.TargetPrimary, 1},
		{"it is a replica", -1, 0, 0, livepool.TargetPrimary, 0},
		{"for a moment, as in a failover", 0, 500 * time.Millisecond, 0, livepool.TargetPrimary, 0},
		{"when it comes back", 0, 0, 10 * time.Minute, livepool.TargetPrimary, 1},
		{"all are to be written", 0, 0, 0, livepool.TargetAny, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := newHost("a", false), newHost("b", tt.both != 0)
				back := time.Now().Add(tt.down)
				b.OnConnect = func(context.Context, int64) error {
					if time.Now().Before(back) {
						return syscall.ECONNREFUSED
					}
					return nil
				}
				if tt.until > 0 {
					time.AfterFunc(tt.until, func() { b.ReadOnly.Store(true) })
				}
				p, log := openHosts(t, func(c *livepool.Config) { c.Target = tt.target }, a, b)
				if _, err := p.Exec(insert); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute)
				if tt.down > 0 && len(log.LinesWith(told)) != 0 {
					t.Error("it is told before it is known")
				}
				before := b.Connects.Load()
				time.Sleep(time.Hour)
				lines := log.LinesWith(told)
				if len(lines) != tt.lines || tt.lines > 0 && (!strings.Contains(lines[0], "a:3306") || !strings.Contains(lines[0], "b:3306")) {
					t.Errorf("it is told in %d lines, want %d:\n%s", len(lines), tt.lines, strings.Join(lines, "\n"))
				}
				if n := b.Connects.Load() - before; tt.down == 0 && tt.target == livepool.TargetPrimary && n != 0 {
					t.Errorf("the other one is asked %d times more in an hour", n)
				}
			})
		})
	}
}

// After its COMMIT was lost with its server, a unit finds its key free on the server that has
// taken over. That proves nothing if that server lacks what the lost one had acknowledged: then
// the outcome stays unknown, and the unit is not run again.
func TestFreeKeyNeedsAWitnessOnAnotherServer(t *testing.T) {
	for _, tt := range []struct {
		name    string
		before  bool   // a unit was acknowledged by the lost server
		has     string // how many rows the other server has with its key
		same    bool   // it is the same server, behind another address
		unnamed bool   // neither says who it is
		applied bool
	}{
		{"the other server has the last unit", true, "1", false, false, true},
		{"it lacks it", true, "0", false, false, false},
		{"there was none", false, "1", false, false, false},
		{"it is the same server", true, "0", true, false, true},
		{"the servers do not say who they are", true, "1", false, true, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := newHost("a", false), newHost("b", true)
				if tt.same {
					b.Name = a.Name
				}
				if tt.unnamed {
					a.Name, b.Name = "", ""
				}
				asked := ""
				b.OnQuery = func(query string) ([]string, error) {
					if strings.HasPrefix(query, "SELECT COUNT(*) FROM") {
						asked = query
						return []string{tt.has}, nil
					}
					return nil, fakedb.ServerError(1227, "refused")
				}
				p, _ := openHosts(t, nil, a, b)
				if tt.before {
					if err := p.WithSession(t.Context(), labtest.Insert(1), livepool.Once("w1tness")); err != nil {
						t.Fatal(err)
					}
				}
				a.OnCommit = func(c *fakedb.Conn) error {
					a.OnConnect = func(context.Context, int64) error { return syscall.ECONNREFUSED }
					a.Kill()
					b.ReadOnly.Store(false)
					c.Valid.Store(false)
					return mysql.ErrInvalidConn
				}
				runs := 0
				err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
					runs++
					return labtest.Insert(2)(ctx, s)
				}, livepool.Once("unit"))
				switch {
				case tt.applied && (err != nil || runs != 2):
					t.Errorf("%v after %d runs, want it applied by the second", err, runs)
				case !tt.applied && (!errors.Is(err, livepool.ErrCommitUnknown) || runs != 1):
					t.Errorf("%v after %d runs, want ErrCommitUnknown after one", err, runs)
				case !tt.applied && !strings.Contains(err.Error(), "may lack what the other had committed"):
					t.Errorf("%v, want the reason", err)
				}
				if wantAsked := tt.before && !tt.same && !tt.unnamed; (asked != "") != wantAsked || wantAsked && !strings.Contains(asked, "x'7731746e657373'") {
					t.Errorf("asked %q, want the key of the last unit to be looked for: %v", asked, wantAsked)
				}
			})
		})
	}
}

// A host that refuses the login has not said whether it takes writes: it is looked at again.
func TestHostThatRefusesLoginsIsLookedAtAgain(t *testing.T) {
	for _, refusal := range []error{
		fakedb.ServerError(1040, "Too many connections"),
		fakedb.ServerError(1053, "Server shutdown in progress"),
	} {
		synctest.Test(t, func(t *testing.T) {
			a, b := newHost("a", false), newHost("b", false)
			begun := time.Now()
			b.OnConnect = func(context.Context, int64) error {
				if time.Since(begun) < 10*time.Minute {
					return refusal
				}
				return nil
			}
			p, log := openHosts(t, nil, a, b)
			if _, err := p.Exec(insert); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Hour)
			if n := len(log.LinesWith("two hosts take writes")); n != 1 {
				t.Errorf("%v: that both take writes is told in %d lines, want 1", refusal, n)
			}
		})
	}
}
