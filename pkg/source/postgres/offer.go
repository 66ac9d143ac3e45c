package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/pgdb"
	"github.com/sluice-fhir/sluice/pkg/references"
)

// offeredAtOnce is the number of ids in one query.
const offeredAtOnce = 10_000

// Offer offers the resources of the store that the unmatched references of the table may name. It looks up urns by id,
// and reads all current resources of a type that is searched by identifier.
func (l *Load) Offer(ctx context.Context, table *references.Table) error {
	l.references = table
	ids, searched := slices.Collect(table.URNs), table.Unmatched()
	rows, _ := l.pool.Query(ctx, "SELECT type FROM type_stats WHERE resources > 0") // rows returns the error
	types, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return pgdb.Wrap("resolve references", err)
	}
	table.Settle()
	for _, typ := range types {
		for chunk := range slices.Chunk(ids, offeredAtOnce) {
			rows, _ := l.pool.Query(ctx, "SELECT id FROM "+leaf(typ)+" WHERE id = ANY($1) AND ended IS NULL", chunk)
			var id string
			if _, err := pgx.ForEachRow(rows, []any{&id}, func() error {
				table.OfferID(fhir.Ref{Type: typ, ID: id})
				return nil
			}); err != nil {
				return pgdb.Wrap("resolve references", err)
			}
		}
		if !slices.Contains(searched, typ) {
			continue
		}
		if err := l.makeStage(ctx, typ); err != nil {
			return pgdb.Wrap("resolve references", err)
		}
		// Not those that the load may withhold: confirm would not find them.
		rows, _ := l.pool.Query(ctx, "SELECT id, body FROM "+leaf(typ)+` AS r WHERE ended IS NULL
			AND NOT EXISTS (SELECT FROM `+stage(typ)+" AS s WHERE s.id = r.id AND "+refused+")")
		var id string
		var body []byte
		if _, err := pgx.ForEachRow(rows, []any{&id, &body}, func() error {
			table.Offer(fhir.Ref{Type: typ, ID: id}, body)
			return nil
		}); err != nil {
			return pgdb.Wrap("resolve references", err)
		}
	}
	return nil
}

// confirm returns an error if a reference was resolved by an identifier that the store does not have after the merges: of a
// version that is not the newest, or of a resource that the load deletes. The resource may belong to somebody else.
func (l *Load) confirm(ctx context.Context) error {
	if l.references == nil {
		return nil
	}
	for ref, has := range l.references.Used {
		var body []byte
		err := l.pool.QueryRow(ctx, "SELECT body FROM "+leaf(ref.Type)+" WHERE id = $1 AND ended IS NULL", ref.ID).Scan(&body)
		if errors.Is(err, pgx.ErrNoRows) || err == nil && !has(body) {
			return fmt.Errorf("a reference names a %s by an identifier that its newest version does not have: "+
				"load the files with the newest versions first, by themselves", ref.Type)
		}
		if err != nil {
			return pgdb.Wrap("confirm references", err)
		}
	}
	return nil
}
