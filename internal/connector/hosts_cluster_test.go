package connector_test

// The nodes of a Galera cluster as several hosts.

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
)

// With wsrep_dirty_reads a node that is out of its cluster says its role, as if it took writes, and
// refuses them all. The pool goes over to another node.
func TestNodeThatSaysItTakesWritesAndRefusesThemIsLeft(t *testing.T) {
	for _, way := range []struct {
		name  string
		do    func(p *livepool.Pool) error
		fails int // how often it may, until the pool knows
	}{
		{"statements", func(p *livepool.Pool) error { _, err := p.Exec(insert); return err }, 0},
		{"units", func(p *livepool.Pool) error { return p.WithSession(context.Background(), labtest.Insert(1)) }, 0},
		{"transactions", func(p *livepool.Pool) error {
			tx, err := p.Begin()
			if err != nil {
				return err
			}
			defer tx.Rollback()
			if _, err := tx.Exec(insert); err != nil {
				return err
			}
			return tx.Commit()
		}, 1},
	} {
		t.Run(way.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := newHost("a", false), newHost("b", false)
				p, _ := openHosts(t, nil, a, b)
				fakedb.Warm(t, p.DB, 5)
				time.Sleep(10 * time.Second)
				refused := 0
				a.OnExec = func(_ context.Context, _ *fakedb.Conn, query string) error {
					if !strings.HasPrefix(query, "INSERT") {
						return nil
					}
					refused++
					return errNotReady
				}
				var failures []error
				for range 30 {
					if err := way.do(p); err != nil {
						failures = append(failures, err)
					}
					time.Sleep(time.Second)
				}
				if len(failures) > way.fails {
					t.Errorf("%d of 30 failed, though the other node works; the last: %v", len(failures), failures[len(failures)-1])
				}
				if n := a.OpenConns(); refused != 1 || n != 0 {
					t.Errorf("%d were refused, and %d connections to that node are left, want 1, 0", refused, n)
				}
			})
		})
	}
}

// Behind one address, as of a balancer, are other nodes: one that refuses its work costs the others'
// connections nothing.
func TestNodeBehindOneAddressIsNoReasonToLeaveTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newHost("a", false)
		a.IsNode = true
		p, _ := openHosts(t, func(c *livepool.Config) { c.Addrs = []string{"a:3306"} }, a)
		fakedb.Warm(t, p.DB, 5)
		time.Sleep(100 * time.Millisecond)
		opened, refused := a.Connects.Load(), false
		a.OnExec = func(_ context.Context, _ *fakedb.Conn, query string) error {
			if refused || query != insert {
				return nil
			}
			refused = true
			return errNotReady
		}
		if _, err := p.Exec(insert); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Second)
		if n := p.Stats().Outages; n != 0 || !refused {
			t.Errorf("%d outages, with %d connections opened", n, a.Connects.Load()-opened)
		}
	})
}
