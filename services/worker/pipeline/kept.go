package pipeline

import (
	"context"
	"fmt"
	"slices"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/source"
	"github.com/sluice-fhir/sluice/services/worker/internal/spillset"
)

// A keptList has up to keptChunks chunks of ids in memory, about 25 MB. It looks up more in the stored list.
const keptChunks = 512

// keptList is the list of the Provenance that is kept, with the parts that a unit has used lately.
type keptList struct {
	list   *spillset.List
	cohort *spillset.List
	parts  map[int][]string // by place
	chunks int              // in parts
}

// openKept opens the list of a unit of Provenance that the request limits. For others it returns nil: nothing is dropped.
func (w *Worker) openKept(
	ctx context.Context, request export.Request, unit export.Unit, cohort *spillset.List,
) (*keptList, error) {
	if request.Associated == "" || unit.Type != "Provenance" {
		return nil, nil
	}
	list, err := w.lists.Open(ctx, w.Objects, unit.Kept, unit.KeptDigest)
	if err != nil {
		return nil, fmt.Errorf("open associated Provenance: %w", err)
	}
	return &keptList{list: list, cohort: cohort, parts: map[int][]string{}}, nil
}

// has reports whether the Provenance is kept.
func (k *keptList) has(ctx context.Context, r source.Resource) (bool, error) {
	if k == nil {
		return true, nil
	}
	place := placeOf(k.cohort, r)
	key := keptKey(place, r.ID)
	part, loaded := k.parts[place]
	if !loaded {
		from, to := max(k.list.Place(keptKey(place, "")), 0), k.list.Place(keptKey(place+1, ""))+1
		if to-from > keptChunks {
			return k.list.Contains(ctx, key)
		}
		if k.chunks += to - from; k.chunks > keptChunks {
			clear(k.parts)
			k.chunks = to - from
		}
		var err error
		if part, err = k.list.IDs(ctx, from, to); err != nil {
			return false, fmt.Errorf("look up associated Provenance: %w", err)
		}
		k.parts[place] = part
	}
	_, found := slices.BinarySearch(part, key)
	return found, nil
}

// divided returns the parts of the unit that are read one after the other, so that each uses few places of the list.
func (k *keptList) divided(unit export.Unit) []export.Unit {
	step, chunks := chunksAtOnce(unit), unit.Slice.To-unit.Slice.From
	if k == nil || chunks <= step {
		return []export.Unit{unit}
	}
	var parts []export.Unit
	for from := unit.Slice.From; from < unit.Slice.To; from += step {
		part := unit
		part.Slice = export.Slice{From: from, To: min(from+step, unit.Slice.To)}
		parts = append(parts, part)
	}
	return parts
}
