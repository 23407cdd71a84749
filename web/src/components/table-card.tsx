import { Card, Table } from "@mantine/core";
import type { ReactNode } from "react";

/** A table that scrolls sideways by itself, not with the page. */
export function TableCard({
  label,
  minWidth,
  children,
}: {
  label: string;
  minWidth: number;
  children: ReactNode;
}) {
  return (
    <Card className="table-card" padding={0}>
      <Table.ScrollContainer
        minWidth={minWidth}
        scrollAreaProps={{ viewportProps: { tabIndex: 0, role: "region", "aria-label": label } }}
      >
        {children}
      </Table.ScrollContainer>
    </Card>
  );
}
