package compare

import (
	"context"
	"io"

	"github.com/livepool/livepool/bench/compare/peers"
)

// addPeers adds the pools of other languages, and says in the report which cannot be had
// here.
func (r *run) addPeers(ctx context.Context, progress io.Writer) {
	found, err := peers.All(ctx, progress)
	if err != nil {
		r.report.LeftOut = err.Error()
	}
	for _, p := range found {
		r.addEntry(entry{name: p.Name, what: "a process of another language", open: func(ctx context.Context, t target) (contender, error) {
			return startProcess(ctx, t, r.log, p.Command)
		}})
	}
}
