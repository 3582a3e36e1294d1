package behaviour_test

// Nobody else is taken for a connection of ours: other threads stay unharmed.

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/proxy"
	"github.com/livepool/livepool/internal/lab/server"
)

// bystander is a connection of the same user that nobody may touch.
type bystander struct {
	*sql.Conn
	id int64
}

// openBystander opens one on a driver's DSN, with a dialer if one is given.
func openBystander(t testing.TB, dsn string, dial func(context.Context, string, string) (net.Conn, error)) bystander {
	t.Helper()
	cfg, err := mysql.ParseDSN(dsn)
	if err != nil {
		t.Fatal(err)
	}
	cfg.DialFunc = dial
	connector, err := mysql.NewConnector(cfg)
	if err != nil {
		t.Fatal(err)
	}
	db := sql.OpenDB(connector)
	db.SetMaxIdleConns(-1) // closed is closed
	t.Cleanup(func() { db.Close() })
	c, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return bystander{c, connectionID(t, c)}
}

// checkUnharmed fails the test if the connection is not the one that it was.
func (i bystander) checkUnharmed(t testing.TB) {
	t.Helper()
	var id int64
	if err := i.QueryRowContext(context.Background(), "SELECT CONNECTION_ID()").Scan(&id); err != nil || id != i.id {
		t.Errorf("a bystander, thread %d, was harmed: now %d, %v", i.id, id, err)
	}
}

// bystanders opens connections until there are some with every id of a range. The
// server must be behind it.
func bystanders(t testing.TB, dsn string, from, to int64, dial func(context.Context, string, string) (net.Conn, error)) (all []bystander) {
	t.Helper()
	all, ok := tryBystanders(t, dsn, from, to, dial)
	if !ok {
		t.Fatalf("the server was past %d already", from)
	}
	return all
}

// tryBystanders is openBystanders where somebody else may take one of the ids.
func tryBystanders(t testing.TB, dsn string, from, to int64, dial func(context.Context, string, string) (net.Conn, error)) (all []bystander, ok bool) {
	t.Helper()
	for id := int64(0); id < to; {
		i := openBystander(t, dsn, dial)
		if id = i.id; id >= from {
			all = append(all, i)
		} else {
			i.Close()
		}
	}
	return all, len(all) > 0 && all[0].id == from
}

// A proxy that greets with ids of its own may name anybody's. Those whom it
// names live; the right one dies, if it can be told.
func TestProxyThatNamesOthersHarmsNobody(t *testing.T) {
	t.Parallel()
	onEachServer(t, func(t *testing.T, s *server.Server) {
		var all parallel
		defer all.wg.Wait()
		for _, beacon := range []string{"auto", "on", "off"} {
			for _, way := range proxyPaths(s) {
				all.run(t, "beacon="+beacon+", "+way.name, func(t *testing.T) {
					var named []bystander
					for range 4 {
						named = append(named, openBystander(t, s.DSN(), nil))
					}
					next := 0
					way.opts = append(slices.Clone(way.opts), proxy.WithThreadIDs(func(uint32) uint32 {
						next++
						return uint32(named[next%len(named)].id)
					}))
					px := way.proxyTo(t, s)
					p := open(t, s.DSNVia(px.Addr()), "pool_stall_after=500ms&pool_beacon="+beacon)
					busy := make(chan error, 1)
					go func() {
						busy <- runSleep(context.Background(), named[0].QueryRowContext(context.Background(), "SELECT SLEEP(3)"))
					}()

					orphans := int64(0)
					for i := range 2 * len(named) {
						c, err := p.Conn(t.Context())
						if err != nil {
							t.Fatal(err)
						}
						orphan := cancelledStatement(t, s, c, fmt.Sprintf("beacon=%s, %s, %d", beacon, way.name, i))
						orphans++
						st := awaitOrphans(t, p, orphans)
						switch {
						case beacon == "off":
							if st.KillUnproved != orphans || !isThreadAlive(t, s, orphan) {
								t.Errorf("orphan %d: Killed %d, KillUnproved %d; want it alive and counted as unproven", orphan, st.Killed, st.KillUnproved)
							}
							killByHand(t, s, orphan)
						default:
							waitWithin(t, 5*time.Second, "the orphan is gone", func() bool { return !isThreadAlive(t, s, orphan) })
							if st.Killed+st.KillUnneeded != orphans {
								t.Errorf("Killed %d, want %d", st.Killed, orphans)
							}
						}
					}

					c, err := p.Conn(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					orphan := connectionID(t, c)
					px.Stall()
					ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
					defer cancel()
					_, err = c.ExecContext(ctx, "DO 1")
					c.Close()
					// Such a proxy may have sent the statement to another server than the one
					// that has the beacon: that its thread there is idle proves nothing.
					if stalled := p.Stats().Stalled; stalled != 0 || err == nil {
						t.Errorf("Stalled %d, error %v", stalled, err)
					}
					orphans++
					if st := awaitOrphans(t, p, orphans); beacon == "off" && st.Killed+st.KillUnneeded != 0 {
						t.Errorf("Killed %d, KillUnneeded %d without any proof", st.Killed, st.KillUnneeded)
					} else if beacon != "off" && isThreadAlive(t, s, orphan) {
						waitWithin(t, 5*time.Second, "the stalled one is gone", func() bool { return !isThreadAlive(t, s, orphan) })
					}
					killByHand(t, s, orphan)
					if err := <-busy; err != nil {
						t.Errorf("a busy bystander: %v", err)
					}
					for _, i := range named {
						i.checkUnharmed(t)
					}
				})
			}
		}
	})
}

// raiseThreadID opens and closes connections until the next one that the server takes
// has a higher id than any that the other has given.
func raiseThreadID(t testing.TB, s, other *server.Server) {
	t.Helper()
	newest := func(s *server.Server) int64 {
		i := openBystander(t, s.DSN(), nil)
		defer i.Close()
		return i.id
	}
	for floor := newest(other) + 150; newest(s) < floor; { // who looks at what abandoned threads do raises that, too
	}
}

// Where one address leads to two servers, a thread id is not worth much: that of
// an abandoned connection is somebody else's on the other one. And a statement
// that runs on one of them is not gone because the other does not know it.
func TestTwoServersBehindOneAddress(t *testing.T) {
	both := func(a, b *server.Server) []string { return []string{a.Addr(), b.Addr()} }
	cases := []struct {
		name string
		on   int // of the two servers, where the statement runs; the pool gets to know the first
		side func(first, second *server.Server) []string
	}{
		{"it runs on the first, who looks lands on the second", 0, func(_, b *server.Server) []string { return []string{b.Addr()} }},
		{"it runs on the first, who looks lands on both", 0, both},
		{"it runs on the second, who looks lands on the first", 1, func(a, _ *server.Server) []string { return []string{a.Addr()} }},
		{"it runs on the second, who looks lands on both", 1, both},
	}
	onEachServer(t, func(t *testing.T, first *server.Server) {
		second := orphanServer(t, first.Kind())
		var all parallel
		defer all.wg.Wait()
		var counting sync.Mutex // held while the servers' ids must not change by others
		for _, way := range proxyPaths(first) {
			for _, tt := range cases {
				all.run(t, way.name+", "+tt.name, func(t *testing.T) {
					counting.Lock()
					free := sync.OnceFunc(counting.Unlock)
					defer free()
					px := way.proxyTo(t, first)
					p := open(t, first.DSNVia(px.Addr()), "pool_stall_after=500ms")
					known, err := p.Conn(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					defer known.Close()

					here, there := first, second
					if tt.on == 1 {
						here, there = second, first
						px.SetUpstream(second.Addr())
					}
					// The side connections of the other subtests' pools take ids too.
					var c, honest *sql.Conn
					var honestID int64
					var named []bystander
					for ok := false; !ok; {
						raiseThreadID(t, here, there)
						c, _ = takeConn(t, p)
						honest, honestID = takeConn(t, p)
						if named, ok = tryBystanders(t, there.DSN(), connectionID(t, c), honestID, nil); !ok {
							for _, taken := range []*sql.Conn{c, honest} {
								taken.Raw(func(any) error { return driver.ErrBadConn })
							}
						}
					}
					px.SetUpstreams(tt.side(first, second)...)
					free()

					var busy sync.WaitGroup
					busy.Go(func() {
						if err := runSleep(t.Context(), honest.QueryRowContext(t.Context(), "SELECT SLEEP(3)")); err != nil {
							t.Errorf("an honest statement: %v", err)
						} else if now := connectionID(t, honest); now != honestID {
							t.Errorf("an honest statement ended on connection %d, not %d", now, honestID)
						}
					})
					orphan := cancelledStatement(t, here, c, t.Name())
					st := awaitOrphans(t, p, 1)
					for _, i := range named {
						i.checkUnharmed(t)
					}
					if st.KillUnneeded != 0 && isThreadAlive(t, here, orphan) {
						t.Errorf("KillUnneeded %d, but the orphan is there", st.KillUnneeded)
					}
					busy.Wait()
					for _, i := range named {
						i.checkUnharmed(t)
					}
					st = p.Stats()
					t.Logf("Killed %d, KillUnneeded %d, KillUnproved %d, StallChecks %d, Stalled %d", st.Killed, st.KillUnneeded, st.KillUnproved, st.StallChecks, st.Stalled)
					if st.StallChecks == 0 || st.Stalled != 0 {
						t.Errorf("StallChecks %d, Stalled %d", st.StallChecks, st.Stalled)
					}
					killByHand(t, here, orphan)
				})
			}
		}
	})
}

// After a restart the ids begin again, and soon another connection has that of
// one that was abandoned, here even its port.
func TestSameIDAfterARestartIsAnother(t *testing.T) {
	t.Parallel()
	onEachServer(t, func(t *testing.T, s *server.Server) {
		for _, way := range proxyPaths(s) {
			t.Run(way.name, func(t *testing.T) {
				px := way.proxyTo(t, s)
				p := open(t, s.DSNVia(px.Addr()), "")
				c, err := p.Conn(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				id := connectionID(t, c)
				host := hostOf(t, s, id)
				time.Sleep(4 * time.Second) // a server tells its age in whole seconds
				px.Stall()
				if err := s.Restart(); err != nil {
					t.Fatal(err)
				}
				var dial func(context.Context, string, string) (net.Conn, error)
				if len(way.opts) > 0 {
					dial = dialAs(host)
				}
				named := bystanders(t, s.DSN(), id, id+3, dial)
				if now := named[0]; now.id != id {
					t.Fatalf("no bystander has the id %d", id)
				}
				if now := hostOf(t, s, id); dial != nil && now != host {
					t.Fatalf("the bystander comes from %s, not %s", now, host)
				}
				ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
				defer cancel()
				if _, err := c.ExecContext(ctx, "DO 1"); !errors.Is(err, context.DeadlineExceeded) {
					t.Fatal(err)
				}
				c.Close()
				st := awaitOrphans(t, p, 1)
				for _, i := range named {
					i.checkUnharmed(t)
				}
				t.Logf("Killed %d, KillUnneeded %d, KillUnproved %d", st.Killed, st.KillUnneeded, st.KillUnproved)
				if st.Killed != 0 {
					t.Errorf("Killed %d", st.Killed)
				}
			})
		}
	})
}

// dialAs dials a server that understands the PROXY header and says that it
// comes from elsewhere.
func dialAs(host string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		nc, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		if err != nil {
			return nil, err
		}
		ip, port, _ := strings.Cut(host, ":")
		_, toPort, _ := strings.Cut(addr, ":")
		_, err = fmt.Fprintf(nc, "PROXY TCP4 %s 127.0.0.1 %s %s\r\n", ip, port, toPort)
		return nc, err
	}
}

// hostOf is where the server sees a connection come from.
func hostOf(t testing.TB, s *server.Server, id int64) string {
	t.Helper()
	list, err := s.Processes()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range list {
		if p.ID == uint64(id) {
			return p.Host
		}
	}
	t.Fatalf("no thread %d", id)
	return ""
}

// A port says who one is only between the same two addresses.
func TestPortOfAnotherPathIsAnothersPort(t *testing.T) {
	t.Parallel()
	type route struct{ from, to string }
	onEachServer(t, func(t *testing.T, a *server.Server) {
		b := orphanServer(t, a.Kind())
		for _, tt := range []struct {
			name string
			side route // that of the pool's connections is 127.0.0.2 to a
		}{
			{"another server, from another address", route{"127.0.0.1", b.Addr()}},
			{"another server", route{"127.0.0.2", b.Addr()}},
			{"another address of the client's", route{"127.0.0.1", a.Addr()}},
		} {
			t.Run(tt.name, func(t *testing.T) {
				var at atomic.Pointer[route]
				at.Store(&route{"127.0.0.2", a.Addr()})
				p := openWith(t, a.DSN(), func(cfg *livepool.Config) {
					cfg.StallAfter = 500 * time.Millisecond
					cfg.MySQL.DialFunc = func(ctx context.Context, network, _ string) (net.Conn, error) {
						r := at.Load()
						return (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(r.from)}}).DialContext(ctx, network, r.to)
					}
				})
				raiseThreadID(t, a, b)
				c, err := p.Conn(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				id := connectionID(t, c)
				_, port, _ := strings.Cut(hostOf(t, a, id), ":")
				at.Store(&tt.side)
				var named []bystander
				if tt.side.from == "127.0.0.1" && tt.side.to == b.Addr() {
					portNumber, err := strconv.Atoi(port)
					if err != nil {
						t.Fatal(err)
					}
					bystanders(t, b.DSN(), id-1, id-1, nil)
					named = bystanders(t, b.DSN(), id, id, (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("127.0.0.1"), Port: portNumber}}).DialContext)
				}
				ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
				defer cancel()
				// A lock wait, which a server does not end by itself when its client is gone.
				_, err = c.ExecContext(ctx, "UPDATE account SET balance = 0 WHERE id = 99 /* "+tt.name+" */")
				if !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("an honest statement ended by itself: %v", err)
				}
				c.Close()
				st := awaitOrphans(t, p, 1)
				if st.Killed+st.KillUnneeded != 0 || st.KillUnproved != 1 || st.Stalled != 0 || st.StallChecks == 0 {
					t.Errorf("Killed %d, KillUnneeded %d, KillUnproved %d, Stalled %d, StallChecks %d", st.Killed, st.KillUnneeded, st.KillUnproved, st.Stalled, st.StallChecks)
				}
				for _, i := range named {
					i.checkUnharmed(t)
				}
				if !isThreadAlive(t, a, id) {
					t.Error("the orphan is gone, by whom?")
				}
				killByHand(t, a, id)
			})
		}
	})
}
