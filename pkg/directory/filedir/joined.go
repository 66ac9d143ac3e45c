package filedir

import (
	"context"
	"time"

	"github.com/sluice-fhir/sluice/pkg/directory/internal/groupndjson"
)

// Joined implements directory.Groups. A membership, and that of a member group, begins with its period; one without a start
// has always been. It holds the ids of those in memory whose membership, or that of their group, began after the instant.
func (g *Groups) Joined(
	ctx context.Context, groupID string, since time.Time, yield func(patientID string) error,
) error {
	index, err := g.current(ctx)
	if err != nil {
		return err
	}
	groups, _, err := index.plan(groupID, since)
	if err != nil {
		return err
	}
	earlier := map[string]bool{}
	for _, group := range groups {
		earlier[group.ID] = true
	}
	joined := map[string]bool{}
	_, err = g.membersAt(ctx, groupID, g.now(), func(group *version, m groupndjson.Member, patient string) error {
		if was, err := m.Covers(since); err != nil || was && earlier[group.ID] {
			return err
		}
		joined[patient] = true
		return nil
	})
	if err != nil || len(joined) == 0 {
		return err
	}
	// By another membership they may have been in the group.
	_, err = g.membersAt(ctx, groupID, since, func(_ *version, _ groupndjson.Member, patient string) error {
		delete(joined, patient)
		return nil
	})
	if err != nil {
		return err
	}
	for patient := range joined {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := yield(patient); err != nil {
			return err
		}
	}
	return nil
}
