// Package servertest gives a test its private server, or several that belong together, and
// takes them away afterwards. The servers themselves are package server's.
package servertest

import (
	"context"
	"errors"
	"testing"

	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/testenv"
)

// Run starts a server for a test, with more options for its program if args are given. Where
// there is none to be had the test is skipped.
func Run(t testing.TB, kind server.Kind, args ...string) *server.Server {
	t.Helper()
	return RunOptions(t, kind, server.Options{Args: args})
}

// RunOptions is Run with all that a server can be given.
func RunOptions(t testing.TB, kind server.Kind, o server.Options) *server.Server {
	t.Helper()
	s, err := server.Start(t.Context(), kind, o)
	mustHave(t, err)
	t.Cleanup(func() { closeAll(t, s.Close, s) })
	return s
}

// RunPair starts a primary and its replica for a test, as Run starts one server.
func RunPair(t testing.TB, kind server.Kind, args ...string) *server.Pair {
	t.Helper()
	return RunPairOptions(t, kind, server.Options{Args: args})
}

// RunPairOptions is RunPair with all that a pair can be given.
func RunPairOptions(t testing.TB, kind server.Kind, o server.Options) *server.Pair {
	t.Helper()
	p, err := server.StartPair(t.Context(), kind, o)
	mustHave(t, err)
	t.Cleanup(func() { closeAll(t, p.Close, p.Servers()...) })
	return p
}

// RunTriple starts a primary and two replicas for a test, as Run starts one server.
func RunTriple(t testing.TB, kind server.Kind, args ...string) *server.Pair {
	t.Helper()
	return RunPairOptions(t, kind, server.Options{Args: args, Replicas: 2})
}

// RunGalera starts a cluster for a test, as Run starts one server.
func RunGalera(t testing.TB, nodes int, args ...string) *server.Galera {
	t.Helper()
	g, err := server.StartGalera(t.Context(), nodes, server.Options{Args: args})
	mustHave(t, err)
	t.Cleanup(func() { closeAll(t, g.Close, g.Nodes()...) })
	return g
}

// RunGroup starts a group of MySQL servers for a test, as Run starts one server.
func RunGroup(t testing.TB, members int, args ...string) *server.Group {
	t.Helper()
	g, err := server.StartGroup(t.Context(), members, server.Options{Args: args})
	mustHave(t, err)
	t.Cleanup(func() { closeAll(t, g.Close, g.Members()...) })
	return g
}

// RunHAProxy starts HAProxy in front of servers for a test.
func RunHAProxy(t testing.TB, servers []*server.Server, fit func(context.Context, *server.Server) bool) *server.HAProxy {
	t.Helper()
	h, err := server.StartHAProxy(t.Context(), servers, fit)
	mustHave(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the end of the log of HAProxy:\n%s", h.Log())
		}
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

// RunRedis starts a Redis for a test, as Run starts a server.
func RunRedis(t testing.TB) *server.Redis {
	t.Helper()
	r, err := server.StartRedis(t.Context())
	mustHave(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the end of the log of Redis:\n%s", r.Log())
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// Have has a kind of server at hand for a test that has no network when it starts one.
func Have(t testing.TB, kind server.Kind) {
	t.Helper()
	_, err := server.Find(t.Context(), kind)
	mustHave(t, err)
}

// mustHave ends a test that did not get what it needs.
func mustHave(t testing.TB, err error) {
	t.Helper()
	if errors.Is(err, server.ErrUnavailable) {
		testenv.Missing(t, "%v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// closeAll ends a test's servers, and shows what they had to say if it failed.
func closeAll(t testing.TB, shut func() error, servers ...*server.Server) {
	if t.Failed() {
		for _, s := range servers {
			t.Logf("the end of the log of %s on %s:\n%s", s.Kind(), s.Addr(), s.Log())
		}
	}
	if err := shut(); err != nil {
		t.Error(err)
	}
}

// Each runs f as a subtest on a server of each kind.
func Each(t *testing.T, f func(t *testing.T, s *server.Server), args ...string) {
	t.Helper()
	for _, kind := range server.Kinds() {
		t.Run(string(kind), func(t *testing.T) { f(t, Run(t, kind, args...)) })
	}
}
