// Package asynq is what the documentation uses of asynq 0.26, so that its blocks compile
// without it.
package asynq

import (
	"context"
	"errors"
)

var SkipRetry = errors.New("skip retry for the task")

type Task struct{}

func (t *Task) Payload() []byte { return nil }

type HandlerFunc func(context.Context, *Task) error
