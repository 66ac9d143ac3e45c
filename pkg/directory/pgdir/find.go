package pgdir

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"

	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/fhir"
)

// Find implements directory.Groups. It holds a connection of the pool until it returns.
func (g *Groups) Find(ctx context.Context, ids []string, after string, yield func(directory.Details) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	text, args := "SELECT id, name, identifiers, quantity FROM directory_group WHERE exportable AND id > $1", []any{after}
	if ids != nil {
		text, args = text+" AND id = ANY($2)", append(args, ids)
	}
	rows, _ := g.pool.Query(ctx, text+" ORDER BY id", args...) // rows returns the error
	var found directory.Details
	var name *string
	var refused error // of yield, returned unchanged
	_, err := pgx.ForEachRow(rows, []any{&found.ID, &name, &found.Identifiers, &found.Quantity}, func() error {
		details := found
		if found = (directory.Details{}); name != nil {
			details.Name = *name
		}
		refused = yield(details)
		return refused
	})
	if refused != nil {
		return refused
	}
	return wrap("read the groups", err)
}

// Describe sets the name and the identifiers of a group. It returns directory.ErrNoGroup when the group does not exist.
func (g *Groups) Describe(ctx context.Context, details directory.Details) error {
	if !fhir.IsID(details.ID) {
		return directory.ErrNoGroup
	}
	if !directory.IsText(details.Name) {
		return errors.New("the name is not valid text")
	}
	for _, id := range details.Identifiers {
		if id == (directory.Identifier{}) || !directory.IsText(id.System+id.Value) {
			return errors.New("an identifier is empty or not valid text")
		}
	}
	name, identifiers := described(details.Name, details.Identifiers)
	done, err := g.pool.Exec(ctx, "UPDATE directory_group SET name = $2, identifiers = $3 WHERE id = $1",
		details.ID, name, identifiers)
	if err == nil && done.RowsAffected() == 0 {
		err = directory.ErrNoGroup
	}
	return wrap("describe the group "+details.ID, err)
}

// described returns the values of the columns: NULL for none.
func described(name string, identifiers []directory.Identifier) (nameColumn, identifiersColumn any) {
	if name != "" {
		nameColumn = name
	}
	if len(identifiers) > 0 {
		identifiersColumn = identifiers
	}
	return nameColumn, identifiersColumn
}
