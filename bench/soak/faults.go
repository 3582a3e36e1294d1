// faults.go is the list of the faults. How each strikes, and how it is healed, is
// network.go's, upsets.go's, locks.go's, servers.go's, takeover.go's, client.go's and state.go's affair.

package soak

import (
	"context"

	"github.com/livepool/livepool/internal/lab/proxy"
)

// kinds are all there are. How long each lasts is about what it takes to be
// noticed, sometimes less and sometimes more.
var kinds = []*kind{
	{"kill", theServer, anyShape, 8, span{}, kill("KILL"), 0},
	{"kill-query", theServer, anyShape, 3, span{}, kill("KILL QUERY"), 0},
	{"fin", network, anyShape, 3, span{}, end("FIN", (*proxy.Proxy).FIN), 0},
	{"rst", network, anyShape, 3, span{}, end("RST", (*proxy.Proxy).RST), 0},
	{"stall", network, anyShape, 4, span{100, 1500}, stall, 0},
	{"black-hole", network, anyShape, 3, span{0, 200}, blackHole, 0},
	{"drop-to-server", network, anyShape, 3, span{50, 800}, drop("drop to the server", (*proxy.Proxy).DropToServer), 0},
	{"drop-to-client", network, anyShape, 3, span{50, 800}, drop("drop to the client", (*proxy.Proxy).DropToClient), 0},
	{"hang-new", network, anyShape, 3, span{100, 1200}, hangNew, 0},
	{"refuse", network, anyShape, 3, span{50, 800}, refuse, 0},
	{"cut-commit", network, anyShape, 14, span{50, 1500}, cut("COMMIT", isCommit), 0},
	{"cut-statement", network, anyShape, 8, span{50, 1200}, cut("a statement", isStatement), 0},
	{"host-cut", network, hosts, 4, span{200, 4000}, cutOff, 0},
	{"crash", theServer, alone | pairs, 1, span{0, 500}, crash, deadly},
	{"pause", theServer, alone | pairs, 3, span{100, 1800}, freeze, 0},
	{"wait-timeout", theServer, anyShape, 2, span{1300, 2300}, shortenWaitTimeout, 0},
	{"read-only", theServer, alone, 3, span{50, 900}, forbidWrites, honest},
	{"deadlock", theServer, anyShape, 5, span{5, 40}, deadlock, honest},
	{"lock", theServer, anyShape, 4, span{200, 1800}, lockRow, honest},
	{"max-connections", theServer, anyShape, 3, span{200, 1200}, exhaust, 0},
	{"full", theServer, anyShape, 1, span{1500, 6000}, exhaust, 0},
	{"read-only-long", theServer, alone, 1, span{1000, 10000}, forbidWrites, honest},
	{"flush-lock", theServer, alone | pairs, 2, span{200, 4000}, flushLock, honest},
	{"alter", theServer, anyShape, 2, span{}, alter, honest},
	{"state", theClient, anyShape, 10, span{}, leaveState, honest},
	{"too-large", theClient, anyShape, 2, span{}, tooLarge, honest},
	{"stop-client", theClient, anyShape, 2, span{300, 2500}, stopClient, honest},
	{"think", theClient, anyShape, 1, span{2600, 4500}, think, honest | exclusive},
	{"rest", theClient, pairs, 2, span{3500, 4500}, rest, honest},
	{"role-switch", theServer, pairs, 4, span{0, 1500}, switchRoles, 0},
	{"failover", theServer, aPair, 2, span{0, 800}, failOver, 0},
	{"takeover-killed", theServer, hostPair, 2, span{0, 800}, takeOver(silentDead), deadly},
	{"takeover-frozen", theServer, hostPair, 2, span{100, 2500}, takeOver(silentFrozen), deadly},
	{"takeover-cut-off", theServer, hostPair, 2, span{100, 2500}, takeOver(silentCutOff), deadly},
	{"takeover-alone", theServer, hostPair, 2, span{100, 1500}, takeOverAlone, deadly},
	{"node-kill", theServer, clusters, 2, span{0, 1500}, killNode, 0},
	{"node-isolate", theServer, clusters, 3, span{200, 2500}, isolateNode, 0},
	{"node-freeze", theServer, clusters, 3, span{200, 5000}, freezeNode, 0},
}

// strikeFunc is what a kind does.
type strikeFunc = func(ctx context.Context, n *nemesis, f fault) (string, error)
