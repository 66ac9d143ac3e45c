package clients

import (
	"context"
	"errors"
	"fmt"

	"github.com/sluice-fhir/sluice/pkg/authstore"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/token"
)

// Register is all clients that there are.
type Register struct {
	file  *File // nil: there is none
	store *authstore.Store
}

// New returns the clients of a file, which may be nil, and of the store.
func New(file *File, store *authstore.Store) *Register { return &Register{file: file, store: store} }

// Client returns a client, export.ErrNotFound when nobody has registered it, or export.ErrUnavailable. A record in Redis
// that this program does not understand is an error, and no client.
func (r *Register) Client(ctx context.Context, id string) (token.Client, error) {
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
		return token.Client{}, fmt.Errorf("a client is registered under the id of another one")
	}
	return client, nil
}

// Check reports whether the file, if there is one, can be read as it is now.
func (r *Register) Check(context.Context) error {
	if r.file == nil {
		return nil
	}
	return r.file.Check()
}
