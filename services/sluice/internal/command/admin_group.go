package command

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/directory/pgdir"
	"github.com/sluice-fhir/sluice/pkg/fhir"
)

const membersHelp = `

Patients are ids, as arguments or with --file, one per line ("-" is standard input). If one id is invalid, nothing is
changed.`

func (a *app) group(flags *adminFlags) *cobra.Command {
	return parent("group", "Manage groups and their members",
		`Manage the groups of the database: sets of patients that can be exported. A load replaces the groups in its files,
including changes made with these commands.`,
		a.groupList(flags), a.groupShow(flags), a.groupDelete(flags),
		a.groupMembers(flags, "create", "Create a group", `Create a group that can be exported. It may have no members.`,
			"created group %s with %d members\n", (*pgdir.Groups).Create),
		a.groupMembers(flags, "add", "Add members to a group",
			`Add patients to a group from now on, without an end date. Existing members are not changed.`,
			"group %s: added %d members\n", (*pgdir.Groups).Add),
		a.groupMembers(flags, "remove", "Remove members from a group",
			`Remove patients from a group, with the date on which they joined. Patients who are not in the group are ignored.`,
			"group %s: removed %d members\n", (*pgdir.Groups).Remove),
	)
}

// groupOutput is a group as JSON.
type groupOutput struct {
	ID          string         `json:"id"`
	Exportable  bool           `json:"exportable"`
	LastUpdated *time.Time     `json:"last_updated,omitempty"`
	Known       int64          `json:"known"`
	Members     int64          `json:"members"`
	Roll        []memberOutput `json:"roll,omitempty"`
}

type memberOutput struct {
	Patient string    `json:"patient"`
	Joined  time.Time `json:"joined"`
	Member  bool      `json:"member"` // now
}

func groupJSON(g pgdir.Group) groupOutput {
	return groupOutput{
		ID: g.ID, Exportable: g.Exportable, LastUpdated: g.LastUpdated, Known: g.Members, Members: g.Current,
	}
}

func groupRow(g pgdir.Group) []string {
	exportable, updated := "yes", "-"
	if !g.Exportable {
		exportable = "no"
	}
	if g.LastUpdated != nil {
		updated = instant(*g.LastUpdated)
	}
	return []string{g.ID, decimal(g.Current), decimal(g.Members), exportable, updated}
}

var groupHeading = []string{"group", "members", "known", "exportable", "last updated"}

func (a *app) groupList(flags *adminFlags) *cobra.Command {
	return withJSON(&cobra.Command{
		Use:   "list",
		Short: "List the groups",
		Long: `List every group: its current members, all its patients (including inactive ones and those whose period does
not cover the present), whether it can be exported, and its meta.lastUpdated.`,
		Args: cobra.NoArgs,
		RunE: a.run(func(ctx context.Context, _ []string) error {
			return a.withDirectory(ctx, flags, func(groups *pgdir.Groups, _ *pgdir.Access) error {
				list, err := groups.List(ctx)
				if err != nil {
					return err
				}
				output, rows := []groupOutput{}, [][]string{groupHeading}
				for _, group := range list {
					output, rows = append(output, groupJSON(group)), append(rows, groupRow(group))
				}
				if flags.json {
					return a.printJSON(output)
				}
				return a.printColumns(rows)
			})
		}),
	}, flags)
}

func (a *app) groupShow(flags *adminFlags) *cobra.Command {
	var members bool
	cmd := withJSON(&cobra.Command{
		Use:   "show GROUP",
		Short: "Show a group",
		Long: `Show a group as list does. With --members, print only the ids of the current members, one per line; with
--members --json, all patients of the group and when they joined.`,
		Args: cobra.ExactArgs(1),
		RunE: a.run(func(ctx context.Context, args []string) error {
			if err := checkGroup(args[0]); err != nil {
				return err
			}
			return a.withDirectory(ctx, flags, func(groups *pgdir.Groups, _ *pgdir.Access) error {
				group, err := groups.Show(ctx, args[0])
				switch {
				case err != nil:
					return named(args[0], err)
				case members && !flags.json:
					return a.printMembers(ctx, groups, group.ID)
				case !flags.json:
					return a.printColumns([][]string{groupHeading, groupRow(group)})
				}
				output := groupJSON(group)
				if members {
					err = groups.Roll(ctx, group.ID, func(m pgdir.Member) error {
						output.Roll = append(output.Roll, memberOutput{Patient: m.Patient, Joined: m.Joined.UTC(), Member: m.Current})
						return nil
					})
				}
				if err != nil {
					return err
				}
				return a.printJSON(output)
			})
		}),
	}, flags)
	cmd.Flags().BoolVar(&members, "members", false, "print the ids of the patients")
	return cmd
}

func (a *app) printMembers(ctx context.Context, groups *pgdir.Groups, groupID string) error {
	w := bufio.NewWriter(a.stdout)
	err := groups.Roll(ctx, groupID, func(m pgdir.Member) error {
		if !m.Current {
			return nil
		}
		if _, err := w.WriteString(m.Patient + "\n"); err != nil {
			return fmt.Errorf("write the result: %w", err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	return nil
}

func (a *app) groupDelete(flags *adminFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "delete GROUP",
		Short: "Delete a group and its membership",
		Args:  cobra.ExactArgs(1),
		RunE: a.run(func(ctx context.Context, args []string) error {
			if err := checkGroup(args[0]); err != nil {
				return err
			}
			return a.withDirectory(ctx, flags, func(groups *pgdir.Groups, _ *pgdir.Access) error {
				err := recorded(flags, "deletion of Group/"+args[0], func() error { return groups.Delete(ctx, args[0]) })
				if err != nil {
					return named(args[0], err)
				}
				return a.print("deleted group " + args[0] + "\n")
			})
		}),
	}
}

// groupMembers is a command with a group and patients as arguments.
func (a *app) groupMembers(
	flags *adminFlags, name, short, long, done string,
	change func(*pgdir.Groups, context.Context, string, pgdir.Patients) (int64, error),
) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   name + " GROUP [PATIENT...]",
		Short: short,
		Long:  long + membersHelp,
		Args:  cobra.MinimumNArgs(1),
		RunE: a.run(func(ctx context.Context, args []string) error {
			groupID, ids := args[0], args[1:]
			if err := checkGroup(groupID); err != nil {
				return err
			}
			if len(ids) == 0 && file == "" && name != "create" {
				return usage("missing patients: pass PATIENT arguments or --file")
			}
			for i, id := range ids {
				if !fhir.IsID(id) {
					return usage("PATIENT number %d is not a FHIR id", i+1)
				}
			}
			return a.withDirectory(ctx, flags, func(groups *pgdir.Groups, _ *pgdir.Access) error {
				var changed int64
				err := recorded(flags, name+" of Group/"+groupID, func() (err error) {
					changed, err = change(groups, ctx, groupID, patients(ids, file))
					return err
				})
				if err != nil {
					return named(groupID, err)
				}
				return a.print(fmt.Sprintf(done, groupID, changed))
			})
		}),
	}
	cmd.Flags().StringVar(&file, "file", "", `file of patient ids, one per line; "-" is standard input`)
	return cmd
}

// patients yields the ids of the arguments, which are valid, and then those of the file, if any.
func patients(ids []string, file string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for id := range slices.Values(ids) {
			if !yield(id, nil) {
				return
			}
		}
		if file == "" {
			return
		}
		for id, err := range validated(lines(file), fhir.IsID[string], "the ids in "+place(file), "a FHIR id") {
			if !yield(id, err) {
				return
			}
		}
	}
}

func checkGroup(id string) error {
	if !fhir.IsID(id) {
		return usage("GROUP is not a FHIR id")
	}
	return nil
}

// named adds the group's id to errors without it.
func named(groupID string, err error) error {
	if errors.Is(err, directory.ErrNoGroup) || errors.Is(err, pgdir.ErrGroupExists) {
		return fmt.Errorf("%s: %w", groupID, err)
	}
	return err
}
