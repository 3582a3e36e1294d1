package server_test

import (
	"strings"
	"testing"
	"time"

	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

func TestAGroupElectsAnotherPrimaryAndTakesTheOldOneBack(t *testing.T) {
	begun := time.Now()
	g := servertest.RunGroup(t, 3)
	t.Logf("started in %v", time.Since(begun))
	members := g.Members()
	primary := g.Primary(t.Context())
	if primary != 0 {
		t.Fatalf("the primary is %d, want the first", primary)
	}
	must(t, members[primary].Exec("CREATE TABLE t (id INT PRIMARY KEY); INSERT INTO t VALUES (0)"))
	wantRows := func(want string) {
		t.Helper()
		must(t, g.AwaitOnline(t.Context()))
		for i, s := range members {
			if got := ids(t, s); got != want {
				t.Errorf("member %d has the rows %s, want %s", i, got, want)
			}
		}
	}
	wantRows("0")
	for _, other := range members[1:] {
		if _, err := open(t, other.DSN()).Exec("INSERT INTO t VALUES (100)"); number(err) != readOnlyError {
			t.Errorf("a write on a member that is not the primary: %v", err)
		}
	}
	want := "0"
	for i, lose := range []struct {
		name string
		lose func(member int) error
		back func(member int) error
	}{
		{"switched", func(member int) error { return g.Switch(t.Context(), (member+1)%3, 0) }, func(int) error { return nil }},
		{"killed", g.KillMember, func(member int) error { return g.StartMember(t.Context(), member) }},
		{"paused", func(member int) error { return members[member].Pause() }, func(member int) error {
			must(t, members[member].Resume())
			return g.StartMember(t.Context(), member)
		}},
	} {
		old := g.Primary(t.Context())
		begun := time.Now()
		must(t, lose.lose(old))
		now, err := g.AwaitPrimary(t.Context(), old)
		must(t, err)
		took := time.Since(begun)
		must(t, members[now].Exec("INSERT INTO t VALUES (?)", i+1))
		begun = time.Now()
		must(t, lose.back(old))
		t.Logf("%s: another is the primary after %v, the old one is back after %v", lose.name, took, time.Since(begun))
		want += "," + string(rune('1'+i))
		wantRows(want)
	}
}

func TestHAProxyLeadsToWhicheverTakesWrites(t *testing.T) {
	p := servertest.RunPair(t, server.MariaDB)
	must(t, p.Primary().Exec("CREATE TABLE t (id INT PRIMARY KEY)"))
	h := servertest.RunHAProxy(t, []*server.Server{p.Primary(), p.Replica()}, server.TakesWrites)
	db := open(t, p.Primary().DSNVia(h.Addr()))
	_, err := db.Exec("INSERT INTO t VALUES (1)")
	must(t, err)
	must(t, p.Switch(t.Context()))
	deadline := time.Now().Add(20 * time.Second)
	for {
		if _, err = db.Exec("INSERT INTO t VALUES (2)"); err == nil || time.Now().After(deadline) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	must(t, err)
	if got := ids(t, p.Primary()); !strings.HasSuffix(got, "2") {
		t.Errorf("the new primary has the rows %s", got)
	}
}
