package behaviour_test

// A switch of roles of which no refusal tells.

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

// A pool that only reads goes with the primary, too.
func TestPoolThatOnlyReadsFollowsASwitch(t *testing.T) {
	t.Parallel()
	for _, kind := range []server.Kind{server.MariaDB, server.MySQL} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			h := hostPairOf(t, kind, "")
			old := h.Primary()
			if port := portOf(t, h.pool); !isAt(old, port) {
				t.Fatalf("it reads at port %s", port)
			}
			if err := h.Switch(t.Context()); err != nil {
				t.Fatal(err)
			}
			labtest.Eventually(t, "it reads at the new primary", func() bool { return isAt(h.Primary(), portOf(t, h.pool)) })
			labtest.Eventually(t, "no connection is left with the old one", func() bool { return h.via[old].Conns() == 0 })
			if lines := h.log.LinesWith("takes writes"); len(lines) != 2 {
				t.Errorf("the switch is told in %d lines:\n%s", len(lines), strings.Join(lines, "\n"))
			}
		})
	}
}

// MariaDB takes the writes of a user with READ_ONLY ADMIN after the switch, too: the pool says
// so beforehand, and leaves that server soon after.
func TestUserWhoMayWriteToAReadOnlyServer(t *testing.T) {
	t.Parallel()
	h := hostPairOf(t, server.MariaDB, "")
	old := h.Primary()
	if err := old.Exec("GRANT READ_ONLY ADMIN ON *.* TO '" + server.AppUser + "'@'%'"); err != nil {
		t.Fatal(err)
	}
	pool, log := openLogged(t, h.Primary().AppDSN(addrsOf(h.Servers())), "")
	insert := func(unit int) {
		if _, err := pool.Exec(fmt.Sprintf("INSERT INTO ledger (unit) VALUES (%d)", unit)); err != nil {
			t.Error(err)
		}
	}
	insert(0)
	labtest.Eventually(t, "it is warned of", func() bool { return len(log.LinesWith("READ_ONLY ADMIN")) == 1 })
	if err := h.Switch(context.Background()); err != nil {
		t.Fatal(err)
	}
	units := 0
	labtest.Eventually(t, "the new primary has a unit", func() bool {
		units++
		insert(units)
		time.Sleep(100 * time.Millisecond)
		return count(t, h.Primary(), "ledger") > 1
	})
	if n := len(log.LinesWith("READ_ONLY ADMIN")); n != 1 {
		t.Errorf("it is told %d times", n)
	}
}

// Behind an address that leads to another server by now the question goes there, too: what the old
// one goes on saying is no second demotion.
func TestSwitchBehindOneAddressIsNoticedOnce(t *testing.T) {
	t.Parallel()
	for _, kind := range []server.Kind{server.MariaDB, server.MySQL} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			pair := servertest.RunPair(t, kind)
			via := proxyTo(t, pair.Primary())
			p := open(t, pair.Primary().AppDSN(via.Addr()), "pool_target=primary")
			if port := portOf(t, p); !isAt(pair.Primary(), port) {
				t.Fatalf("it reads at port %s", port)
			}
			time.Sleep(2 * time.Second) // it has been asked by now
			if err := pair.Switch(t.Context()); err != nil {
				t.Fatal(err)
			}
			via.SetUpstream(pair.Primary().Addr())
			labtest.Eventually(t, "it reads at the new primary", func() bool { return isAt(pair.Primary(), portOf(t, p)) })
			time.Sleep(3 * time.Second)
			if port := portOf(t, p); !isAt(pair.Primary(), port) || p.Stats().Outages > 1 {
				t.Errorf("it reads at port %s, after %d outages", port, p.Stats().Outages)
			}
		})
	}
}
