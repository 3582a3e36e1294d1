// idempotent.go is how a caller vouches for statements that may run twice.

package connector

import "context"

// idempotentKey is under what a context vouches: a *LossCounter, nil for none.
type idempotentKey struct{}

// WithIdempotent returns a context under which a statement outside a transaction may
// be sent again after its connection was lost, even if it may have run. losses counts
// over several calls; without it database/sql's own limit is the only one.
func WithIdempotent(ctx context.Context, losses *LossCounter) context.Context {
	return context.WithValue(ctx, idempotentKey{}, losses)
}

// isIdempotent is asked only after a loss, so that it costs nothing before.
func isIdempotent(ctx context.Context) bool { return ctx.Value(idempotentKey{}) != nil }
