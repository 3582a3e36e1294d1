// faults.go is the list of the faults. How each strikes, and how it is healed, is
// network.go's, upsets.go's, locks.go's and servers.go's affair.

package soak

import (
	"context"

	"github.com/livepool/livepool/internal/proxy"
)

// kinds are all there are. How long each lasts is about what it takes to be
// noticed, sometimes less and sometimes more.
var kinds = []*kind{
	{"kill", theServer, anyShape, 8, span{}, kill("KILL")},
	{"kill-query", theServer, anyShape, 3, span{}, kill("KILL QUERY")},
	{"fin", network, anyShape, 3, span{}, end("FIN", (*proxy.Proxy).FIN)},
	{"rst", network, anyShape, 3, span{}, end("RST", (*proxy.Proxy).RST)},
	{"stall", network, anyShape, 4, span{100, 1500}, stall},
	{"black-hole", network, anyShape, 3, span{0, 200}, blackHole},
	{"drop-to-server", network, anyShape, 3, span{50, 800}, drop("drop to the server", (*proxy.Proxy).DropToServer)},
	{"drop-to-client", network, anyShape, 3, span{50, 800}, drop("drop to the client", (*proxy.Proxy).DropToClient)},
	{"hang-new", network, anyShape, 3, span{100, 1200}, hangNew},
	{"refuse", network, anyShape, 3, span{50, 800}, refuse},
	{"cut-commit", network, anyShape, 14, span{50, 1500}, cut("COMMIT", isCommit)},
	{"cut-statement", network, anyShape, 8, span{50, 1200}, cut("a statement", isStatement)},
	{"crash", theServer, alone | aPair, 1, span{0, 500}, crash},
	{"pause", theServer, alone | aPair, 3, span{100, 1800}, freeze},
	{"wait-timeout", theServer, anyShape, 2, span{1300, 2300}, shortenWaitTimeout},
	{"read-only", theServer, alone, 3, span{50, 900}, forbidWrites},
	{"deadlock", theServer, anyShape, 5, span{5, 40}, deadlock},
	{"lock", theServer, anyShape, 4, span{200, 1800}, lockRow},
	{"max-connections", theServer, anyShape, 3, span{200, 1200}, exhaust},
	{"role-switch", theServer, aPair, 4, span{0, 1500}, switchRoles},
	{"failover", theServer, aPair, 2, span{0, 800}, failOver},
	{"node-kill", theServer, aCluster, 2, span{0, 1500}, killNode},
	{"node-isolate", theServer, aCluster, 3, span{200, 2500}, isolateNode},
	{"node-freeze", theServer, aCluster, 3, span{200, 5000}, freezeNode},
}

// strikeFunc is what a kind does.
type strikeFunc = func(ctx context.Context, n *nemesis, f fault) (string, error)
