package pgdir

import (
	"context"
	"time"
)

// settling is longer than a change of a group takes to be visible: its rows have a time before the commit. Somebody who
// joined so shortly before the instant counts as joined after it, rather than in no export.
const settling = 5 * time.Minute

// were is the condition on a row of a period to be active at the instant $3, as was known at $4.
const were = "NOT inactive AND starts <= $3 AND ends > $3 AND (active_since IS NULL OR active_since <= $4)"

// could is the condition on a row of directory_group to be exportable then.
const could = "exportable AND (exportable_since IS NULL OR exportable_since <= $4)"

// earlier is the query reached for the instant $3.
const earlier = `earlier AS (
		SELECT id FROM directory_group WHERE id = $1 AND ` + could + `
	UNION
		SELECT g.id FROM earlier AS r
		JOIN directory_subgroup AS s ON s.group_id = r.id AND ` + were + `
		JOIN directory_group AS g ON g.id = s.member AND ` + could + `)`

// selectJoined returns the rows of selectMembers without those of members at the instant $3. It looks each one up by the
// index.
const selectJoined = `WITH RECURSIVE ` + reached + `, ` + earlier + `
	SELECT NULL::text, NULL::text, 0::bigint FROM reached WHERE id = $1
	UNION ALL SELECT m.patient, NULL, 0 FROM reached AS r
		CROSS JOIN LATERAL (SELECT patient FROM directory_member WHERE group_id = r.id AND ` + active + ` OFFSET 0) AS m
		WHERE r.exportable AND NOT EXISTS (SELECT FROM earlier AS e JOIN directory_member AS o ON o.group_id = e.id
			WHERE o.patient = m.patient AND ` + were + ` OFFSET 0)`

// Joined implements directory.Groups. It knows when rows of the directory were written, except those of a group that was
// new then; see docs/access.md.
func (g *Groups) Joined(
	ctx context.Context, groupID string, since time.Time, yield func(patientID string) error,
) error {
	_, err := g.stream(ctx, groupID, yield, selectJoined, g.now(), since, since.Add(-settling))
	return err
}
