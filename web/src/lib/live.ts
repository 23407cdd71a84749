import { useQueryClient } from "@tanstack/react-query";
import { createContext, useContext, useEffect, useRef, useState } from "react";
import type { Job } from "@/api/client";
import { queryKeys } from "@/api/queries";

/** Whether the API answers; told by the events stream and by requests that fail. */
export const Connection = createContext<"up" | "down">("up");
export const useConnection = () => useContext(Connection);

/** What is drawn from jobs is asked for again at most this often, however much happens. */
const CALM = 700;

/** Keeps what is shown up to date, by the stream of state changes. */
export function useNews(): "up" | "down" {
  const queries = useQueryClient();
  const [state, setState] = useState<"up" | "down">("up");
  useEffect(() => {
    let due: ReturnType<typeof setTimeout> | undefined;
    let again: ReturnType<typeof setTimeout> | undefined;
    let source: EventSource | undefined;
    let wasDown = false;
    const refresh = () => {
      due = undefined;
      for (const queryKey of [
        queryKeys.jobs,
        queryKeys.batches,
        queryKeys.overview,
        queryKeys.accounts,
        queryKeys.workers,
      ]) {
        queries.invalidateQueries({ queryKey });
      }
    };
    const open = () => {
      source = new EventSource("/api/events");
      source.addEventListener("changes", (event) => {
        const { changes, missed } = JSON.parse(event.data);
        if (wasDown) queries.invalidateQueries();
        wasDown = false;
        setState("up");
        if (changes.length + missed > 0 && !due) due = setTimeout(refresh, CALM);
      });
      source.onerror = () => {
        wasDown = true;
        setState("down");
        source?.close();
        again = setTimeout(open, 1_000);
      };
    };
    open();
    return () => {
      source?.close();
      clearTimeout(due);
      clearTimeout(again);
    };
  }, [queries]);
  return state;
}

/** A job's text as it comes. */
export function useJobStream(id: string | undefined): { text: string; attempt: number; live: boolean } {
  const queries = useQueryClient();
  const [shown, setShown] = useState({ text: "", attempt: 0, live: true });
  const text = useRef("");
  useEffect(() => {
    if (!id) return;
    text.current = "";
    setShown({ text: "", attempt: 0, live: true });
    let attempt = 0;
    let frame = 0;
    const draw = (live: boolean) => {
      cancelAnimationFrame(frame);
      frame = requestAnimationFrame(() => setShown({ text: text.current, attempt, live }));
    };
    const source = new EventSource(`/api/jobs/${id}/events`);
    const keep = (job: Job) => queries.setQueryData(queryKeys.job(id), job);
    source.addEventListener("state", (event) => keep(JSON.parse(event.data)));
    source.addEventListener("text", (event) => {
      const piece = JSON.parse(event.data);
      attempt = piece.attempt;
      text.current += piece.text;
      draw(true);
    });
    source.addEventListener("void", () => {
      text.current = "";
      draw(true);
    });
    source.addEventListener("end", (event) => {
      source.close();
      const job: Job = JSON.parse(event.data);
      if (job.result) text.current = job.result.text;
      draw(false);
      keep(job);
    });
    return () => {
      source.close();
      cancelAnimationFrame(frame);
    };
  }, [id, queries]);
  return shown;
}
