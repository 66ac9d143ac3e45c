package clients

import (
	"context"
	"errors"

	"github.com/sluice-fhir/sluice/pkg/authstore"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/token"
)

// Registry looks clients up in a file and in the store.
type Registry struct {
	file  *File // nil if there is none
	store *authstore.Store
}

// New returns a registry. file may be nil.
func New(file *File, store *authstore.Store) *Registry { return &Registry{file: file, store: store} }

// Client returns a client, export.ErrNotFound, or export.ErrUnavailable. It returns another error for a malformed record in
// Redis.
func (r *Registry) Client(ctx context.Context, id string) (token.Client, error) {
	if r.file != nil {
		client, err := r.file.Client(id)
		if !errors.Is(err, export.ErrNotFound) {
			return client, err
		}
	}
	record, err := r.store.Client(ctx, id)
	if err != nil {
		return token.Client{}, err
	}
	client, err := token.ParseClient(record)
	if err != nil {
		return token.Client{}, err
	}
	if client.ID != id {
		return token.Client{}, errors.New("the client record has another id")
	}
	return client, nil
}

// Check reports whether the file, if there is one, can be read.
func (r *Registry) Check(context.Context) error {
	if r.file == nil {
		return nil
	}
	return r.file.Check()
}
