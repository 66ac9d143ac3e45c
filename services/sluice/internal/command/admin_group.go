package command

import (
	"bufio"
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/directory/pgdir"
	"github.com/sluice-fhir/sluice/pkg/fhir"
)

const membersHelp = `

Patients are ids, as arguments or with --file, one per line ("-" is standard input). If one id is invalid, nothing is
changed.`

func (a *app) group() *cobra.Command {
	return parent("group", "Manage groups and their members",
		`Manage the groups of the database: sets of patients that can be exported. A load replaces the groups in its files,
including changes made with these commands.`,
		a.groupList(), a.groupShow(),
		a.onDirectory(&cobra.Command{
			Use:   "delete GROUP",
			Short: "Delete a group and its membership",
			Args:  cobra.MatchAll(cobra.ExactArgs(1), aGroup),
		}, func(ctx context.Context, groups *pgdir.Groups, _ *pgdir.Access, args []string) error {
			return a.recorded("deletion of Group/"+args[0], func() (string, error) {
				return "deleted group " + args[0] + "\n", named(args[0], groups.Delete(ctx, args[0]))
			})
		}),
		a.groupMembers("create", "Create a group", `Create a group that can be exported. It may have no members.`,
			"created group %s with %d members\n", (*pgdir.Groups).Create),
		a.groupMembers("add", "Add members to a group",
			`Add patients to a group from now on, without an end date. Existing members are not changed.`,
			"group %s: added %d members\n", (*pgdir.Groups).Add),
		a.groupMembers("remove", "Remove members from a group",
			`Remove patients from a group, together with their joining dates. Patients who are not in the group are ignored.`,
			"group %s: removed %d members\n", (*pgdir.Groups).Remove),
	)
}

func aGroup(_ *cobra.Command, args []string) error {
	if !fhir.IsID(args[0]) {
		return usage("GROUP is not a FHIR id")
	}
	return nil
}

func groupRows(groups ...pgdir.Group) []row {
	rows := []row{{"group", "members", "known", "exportable", "last updated"}}
	for _, g := range groups {
		exportable, updated := "yes", "-"
		if !g.Exportable {
			exportable = "no"
		}
		if g.LastUpdated != nil {
			updated = instant(*g.LastUpdated)
		}
		rows = append(rows, row{g.ID, g.Current, g.Members, exportable, updated})
	}
	return rows
}

func (a *app) groupList() *cobra.Command {
	return a.withJSON(a.onDirectory(&cobra.Command{
		Use:   "list",
		Short: "List the groups",
		Long: `List every group: its current members, all its patients (including inactive ones and those whose period does
not cover the present), whether it can be exported, and its meta.lastUpdated.`,
	}, func(ctx context.Context, groups *pgdir.Groups, _ *pgdir.Access, _ []string) error {
		list, err := groups.List(ctx)
		if err != nil {
			return err
		}
		return a.show(list, groupRows(list...))
	}))
}

func (a *app) groupShow() *cobra.Command {
	var members bool
	cmd := a.withJSON(a.onDirectory(&cobra.Command{
		Use:   "show GROUP",
		Short: "Show a group",
		Long: `Show a group as list does. With --members, print only the ids of the current members, one per line; with
--members --json, all patients of the group and when they joined.`,
		Args: cobra.MatchAll(cobra.ExactArgs(1), aGroup),
	}, func(ctx context.Context, groups *pgdir.Groups, _ *pgdir.Access, args []string) error {
		group, err := groups.Show(ctx, args[0])
		if err != nil {
			return named(args[0], err)
		}
		if members && !a.flags.json {
			return a.printMembers(ctx, groups, group.ID)
		}
		output := struct {
			pgdir.Group
			Roll []pgdir.Member `json:"roll,omitempty"`
		}{Group: group}
		if members {
			err = groups.Roll(ctx, group.ID, func(m pgdir.Member) error {
				m.Joined = m.Joined.UTC()
				output.Roll = append(output.Roll, m)
				return nil
			})
		}
		if err != nil {
			return err
		}
		return a.show(output, groupRows(group))
	}))
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

// groupMembers returns a command with a group and patients as arguments.
func (a *app) groupMembers(
	name, short, long, done string, change func(*pgdir.Groups, context.Context, string, pgdir.Patients) (int64, error),
) *cobra.Command {
	var file string
	cmd := a.onDirectory(&cobra.Command{
		Use:   name + " GROUP [PATIENT...]",
		Short: short,
		Long:  long + membersHelp,
		Args: cobra.MatchAll(cobra.MinimumNArgs(1), aGroup, func(_ *cobra.Command, args []string) error {
			if len(args) == 1 && file == "" && name != "create" {
				return usage("missing patients: pass PATIENT arguments or --file")
			}
			for i, id := range args[1:] {
				if !fhir.IsID(id) {
					return usage("PATIENT number %d is not a FHIR id", i+1)
				}
			}
			return nil
		}),
	}, func(ctx context.Context, groups *pgdir.Groups, _ *pgdir.Access, args []string) error {
		patients := prepend(args[1:], nil)
		if file != "" {
			patients = prepend(args[1:], validated(idsIn(file), fhir.IsID[string], "the ids in "+place(file), "a FHIR id"))
		}
		return a.recorded(name+" of Group/"+args[0], func() (string, error) {
			changed, err := change(groups, ctx, args[0], patients)
			return fmt.Sprintf(done, args[0], changed), named(args[0], err)
		})
	})
	cmd.Flags().StringVar(&file, "file", "", `file of patient ids, one per line; "-" is standard input`)
	return cmd
}

// named adds the group's id to errors without it.
func named(groupID string, err error) error {
	if errors.Is(err, directory.ErrNoGroup) || errors.Is(err, pgdir.ErrGroupExists) {
		return fmt.Errorf("%s: %w", groupID, err)
	}
	return err
}
