package connector_test

import (
	"context"
	"database/sql/driver"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
)

// wrapAll is fakedb.Wrap for the pool and that of its replicas.
func wrapAll(hosts ...*fakedb.Host) func(*livepool.Config) {
	return func(c *livepool.Config) {
		var mu sync.Mutex
		n := 0
		c.Wrap = func(driver.Connector) driver.Connector {
			mu.Lock()
			defer mu.Unlock()
			h := hosts[n/2%len(hosts)]
			n++
			return h
		}
	}
}

// What a replica refuses for reasons of its own the primary serves.
func TestThePrimaryServesWhatAReplicaRefuses(t *testing.T) {
	count := func(n string, err error) func(string) ([]string, error) {
		return func(q string) ([]string, error) {
			if strings.HasPrefix(q, "SELECT COUNT(*) FROM") {
				if err != nil {
					return nil, err
				}
				return []string{n}, nil
			}
			return nil, fakedb.ServerError(1227, "refused")
		}
	}
	for name, prepare := range map[string]func(b *fakedb.Host, c *livepool.Config){
		"denies access": func(b *fakedb.Host, _ *livepool.Config) {
			b.OnConnect = func(context.Context, int64) error { return fakedb.ServerError(1045, "Access denied") }
		},
		"no privilege for lag": func(b *fakedb.Host, c *livepool.Config) { c.MaxLag = 5 * time.Second },
		"no commit table":      func(b *fakedb.Host, c *livepool.Config) { b.OnQuery = count("", fakedb.ServerError(1146, "no table")) },
		"no SELECT on it": func(b *fakedb.Host, c *livepool.Config) {
			b.OnQuery = count("", fakedb.ServerError(1142, "SELECT denied"))
		},
		"unknown database": func(b *fakedb.Host, _ *livepool.Config) {
			b.OnConnect = func(context.Context, int64) error { return fakedb.ServerError(1049, "Unknown database") }
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := newHost("a", false), newHost("b", true)
				p, _ := openHosts(t, func(c *livepool.Config) { wrapAll(a, b)(c); prepare(b, c) }, a, b)
				opts := []livepool.SessionOption{livepool.ReadOnly(), livepool.FromReplica()}
				if strings.Contains(name, "table") || strings.Contains(name, "SELECT") {
					opts = append(opts, livepool.After("x"))
				}
				err := p.WithSession(t.Context(), labtest.Work, opts...)
				t.Logf("served by the replica: %d; %v", p.Stats().ServedByReplica, err)
				if err != nil {
					t.Errorf("not served by the primary")
				}
			})
		})
	}
}

// A refused write has the pool look for another primary, however it was sent.
func TestADemotionIsNoticedByAnyWrite(t *testing.T) {
	for name, write := range map[string]func(p *livepool.Pool) error{
		"sql.Conn": func(p *livepool.Pool) error {
			c, err := p.Conn(context.Background())
			if err != nil {
				return err
			}
			defer c.Close()
			if _, err := c.ExecContext(context.Background(), "DO 1"); err != nil {
				return err
			}
			_, err = c.ExecContext(context.Background(), insert)
			return err
		},
		"CALL": func(p *livepool.Pool) error { _, err := p.Exec("CALL p()"); return err },
		"several in one": func(p *livepool.Pool) error {
			_, err := p.Exec("INSERT INTO t VALUES (1); INSERT INTO t VALUES (2)")
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := newHost("a", false), newHost("b", true)
				for _, h := range []*fakedb.Host{a, b} {
					h.OnExec = func(_ context.Context, _ *fakedb.Conn, q string) error {
						if h.ReadOnly.Load() && (strings.HasPrefix(q, "INSERT") || strings.HasPrefix(q, "CALL")) {
							return fakedb.ServerError(1290, readOnlyText)
						}
						return nil
					}
				}
				p, _ := openHosts(t, func(c *livepool.Config) { c.MySQL.MultiStatements = true }, a, b)
				if err := write(p); err != nil {
					t.Fatal(err)
				}
				time.Sleep(3 * time.Second)
				a.ReadOnly.Store(true)
				b.ReadOnly.Store(false)
				failed := 0
				for range 600 {
					if err := write(p); err != nil {
						failed++
					}
					time.Sleep(time.Second)
				}
				t.Logf("%d of 600 failed in 10 minutes", failed)
				if failed > 3 {
					t.Error("the pool stays with the old primary")
				}
			})
		})
	}
}

// Another unit inside, whose outcome is unknown, would be repeated with it.
func TestUnknownUnitInsideOneFromReplicaIsNotRepeated(t *testing.T) {
	for _, fromReplica := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			a, b := newHost("a", false), newHost("b", true)
			p, _ := openHosts(t, wrapAll(a, b), a, b)
			commits := 0
			a.OnCommit = func(c *fakedb.Conn) error {
				commits++
				if commits > 1 {
					return nil
				}
				c.Valid.Store(false)
				return mysql.ErrInvalidConn // applied, and the answer lost
			}
			opts := []livepool.SessionOption{}
			if fromReplica {
				opts = append(opts, livepool.ReadOnly(), livepool.FromReplica())
			}
			runs := 0
			err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
				runs++
				if err := labtest.Work(ctx, s); err != nil {
					return err
				}
				return p.WithSession(ctx, labtest.Insert(1), livepool.RequiresNew())
			}, opts...)
			t.Logf("from a replica %v: %d runs, %v", fromReplica, runs, err)
			if runs != 1 {
				t.Error("the inner unit, of which it is not known whether it was applied, was run again")
			}
		})
	}
}

// What the function returns is no evidence of what its connection saw.
func TestErrorOfAFileInAUnitFromReplicaIsNotRepeated(t *testing.T) {
	for _, fromReplica := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			a, b := newHost("a", false), newHost("b", true)
			p, _ := openHosts(t, wrapAll(a, b), a, b)
			opts := []livepool.SessionOption{livepool.ReadOnly()}
			if fromReplica {
				opts = append(opts, livepool.FromReplica())
			}
			runs := 0
			err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
				runs++
				if err := labtest.Work(ctx, s); err != nil {
					return err
				}
				return io.ErrUnexpectedEOF // of a file
			}, opts...)
			t.Logf("from a replica %v: %d runs, %v", fromReplica, runs, err)
			if runs != 1 {
				t.Error("run again")
			}
		})
	}
}

// However a switch is noticed, it is told in two lines: when it began, and which host has taken over.
func TestSwitchIsToldHoweverItIsNoticed(t *testing.T) {
	for name, notice := range map[string]func(t *testing.T, p *livepool.Pool){
		"by a refused write": func(t *testing.T, p *livepool.Pool) { _, _ = p.Exec(insert) },
		"by a question":      func(t *testing.T, _ *livepool.Pool) { time.Sleep(2 * time.Second) },
		"by a login": func(t *testing.T, p *livepool.Pool) {
			c, err := p.Conn(t.Context()) // the only one that is idle, so that another one is opened
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_, _ = p.Exec("DO 1")
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := newHost("a", false), newHost("b", true)
				a.OnExec = func(_ context.Context, _ *fakedb.Conn, q string) error {
					if a.ReadOnly.Load() && q == insert {
						return fakedb.ServerError(1290, readOnlyText)
					}
					return nil
				}
				for _, h := range []*fakedb.Host{a, b} {
					h.OnConnect = func(context.Context, int64) error { time.Sleep(time.Millisecond); return nil }
				}
				p, log := openHosts(t, nil, a, b)
				fakedb.Warm(t, p.DB, 1)
				time.Sleep(10 * time.Second)
				a.ReadOnly.Store(true)
				b.ReadOnly.Store(false)
				notice(t, p)
				if _, err := p.Exec(insert); err != nil {
					t.Error(err)
				}
				if lines := log.LinesWith("takes writes"); len(lines) != 2 {
					t.Errorf("%d lines, want 2:\n%s", len(lines), strings.Join(lines, "\n"))
				}
			})
		})
	}
}
